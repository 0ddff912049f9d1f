"""Chooses the machine provider, and follows a Kubernetes Deployment's scale as the number of replicas.

KEDA and HorizontalPodAutoscalers need a scale subresource, which RayClusters lack. They scale a placeholder Deployment
instead, whose pods do nothing, and the controller runs as many replicas as the Deployment has desired pods.
"""

import asyncio
import logging
from typing import Protocol

from outrider.cluster.controller.cluster_spec import ClusterSpec
from outrider.cluster.controller.scaling.machines import MachineProvider, RayPlacement
from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.controller")
_EVERY_S = 5.0


class Scaled(Protocol):
    """The part of the controller that sets the number of replicas."""

    @property
    def desired(self) -> int: ...

    async def scale(self, replicas: int) -> None: ...


class WantedReplicas(Protocol):
    """A source of the desired number of replicas."""

    def read(self) -> int:
        """Blocks. Raises OutriderError if it cannot be read."""
        ...


def machine_provider(spec: ClusterSpec) -> MachineProvider:
    if spec.kubernetes_ray_cluster is None:
        return RayPlacement()
    from outrider.cluster.controller.scaling.kubernetes import (
        RayClusterMachines,
        connect,
    )  # takes a second to import, and is seldom needed

    return RayClusterMachines(connect(), spec.kubernetes_ray_cluster, spec.kubernetes_worker_group)


def wanted_replicas(spec: ClusterSpec) -> WantedReplicas | None:
    """The Deployment that sets the number of replicas, or None."""
    if spec.kubernetes_scale_deployment is None:
        return None
    from outrider.cluster.controller.scaling.kubernetes import DeploymentScale, connect_to_deployments

    return DeploymentScale(connect_to_deployments(), spec.kubernetes_scale_deployment)


async def follow(wanted: WantedReplicas | None, controller: Scaled, every_s: float = _EVERY_S) -> None:
    """Sets the controller's number of replicas whenever the wanted number changes, until cancelled.

    Between changes users may set another number: `outrider upgrade` adds one replica for a while.
    """
    problem, before = "", None
    while wanted is not None:
        try:
            replicas = await asyncio.to_thread(wanted.read)
            problem = ""
            if replicas not in (before, controller.desired):
                await controller.scale(replicas)
            before = replicas
        except OutriderError as error:
            if str(error) != problem:
                problem = str(error)
                logs.event(log, logging.WARNING, "cannot read the number of replicas", reason=problem)
        await asyncio.sleep(every_s)
