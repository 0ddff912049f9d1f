"""Starts the controller's Ray actor and calls its methods, with retries while Ray restarts it after a crash."""

import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from outrider.cluster.controller.cluster_spec import ClusterSpec
from outrider.cluster.controller.controller import Controller
from outrider.cluster.controller.names import controller_name

CALL_AGAIN_S = 0.2


def start_controller(spec: ClusterSpec) -> ActorHandle[Controller]:
    """Starts the controller on this node. Ray restarts it here after a crash.

    It continues from the cluster's record, if there is one. Raises ValueError if the cluster already has a controller.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Controller).options(
        name=controller_name(spec.cluster),
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=here,
    )
    controller = actor.remote(spec)
    assert isinstance(controller, ActorHandle)
    return controller


def call_controller(
    controller: Any, method: str, *, timeout_s: float
) -> Any:  # Ray's actor handles and results have no types
    """Calls a method and returns its result. Retries while the actor restarts. Raises Ray's errors."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return ray.get(getattr(controller, method).remote(), timeout=max(0.0, until - time.monotonic()))
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > until:
                raise
            time.sleep(CALL_AGAIN_S)
