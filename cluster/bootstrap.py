"""The controller's actor: started, asked, and asked again while Ray restarts it after a crash."""

import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from outrider.cluster.charge import Charge
from outrider.cluster.controller import Controller
from outrider.cluster.names import controller_name

ASK_AGAIN_S = 0.2


def start_controller(charge: Charge) -> ActorHandle[Controller]:
    """On this node, with which it goes; after a crash Ray starts it again. ValueError if the cluster has one already.

    It goes on from the cluster's record, if there is one.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Controller).options(
        name=controller_name(charge.cluster),
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=here,
    )
    controller = actor.remote(charge)
    assert isinstance(controller, ActorHandle)
    return controller


def ask(controller: Any, method: str, *, timeout_s: float) -> Any:  # as Ray's own handles and answers
    """The method's answer, asked for again while the actor is being restarted. Ray's own errors."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return ray.get(getattr(controller, method).remote(), timeout=max(0.0, until - time.monotonic()))
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > until:
                raise
            time.sleep(ASK_AGAIN_S)
