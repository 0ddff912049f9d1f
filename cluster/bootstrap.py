"""Starts a cluster's controller as a named actor, on the node of whoever starts it: it goes with that node alone."""

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from outrider.cluster.controller import Controller
from outrider.cluster.gang import prefix
from outrider.cluster.replica import Charge


def controller_name(cluster: str) -> str:
    return f"{prefix(cluster)}controller"


def start_controller(charge: Charge) -> ActorHandle[Controller]:
    """Its `open` comes next. ValueError if the cluster has a controller already."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Controller).options(
        name=controller_name(charge.cluster),
        lifetime="detached",
        num_cpus=0,
        max_restarts=0,
        scheduling_strategy=here,
    )
    controller = actor.remote(charge)
    assert isinstance(controller, ActorHandle)
    return controller
