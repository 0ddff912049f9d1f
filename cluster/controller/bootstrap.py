"""Starts and calls the controller's actor, retrying while Ray restarts it after a crash."""

import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from outrider.cluster.controller.charge import Charge
from outrider.cluster.controller.controller import Controller
from outrider.cluster.controller.names import controller_name

ASK_AGAIN_S = 0.2


def start_controller(charge: Charge) -> ActorHandle[Controller]:
    """Starts it on this node, pinned to it; Ray restarts it after a crash. ValueError if the cluster has one already.

    It continues from the cluster's record, if there is one.
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
    """The method's result; retried while the actor restarts. Raises Ray's errors."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return ray.get(getattr(controller, method).remote(), timeout=max(0.0, until - time.monotonic()))
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > until:
                raise
            time.sleep(ASK_AGAIN_S)
