"""The controller on Kubernetes, by its charge: what provides machines, and what sets the number of replicas.

KEDA and HorizontalPodAutoscalers scale what has a scale subresource, and a RayCluster has none. They scale a
Deployment instead, whose pods do nothing, and the controller keeps as many replicas as it is to have pods.
"""

import asyncio
import logging
from typing import Protocol

from outrider.cluster.controller.charge import Charge
from outrider.cluster.controller.machines import MachineProvider, RayPlacement
from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.controller")
_EVERY_S = 5.0


class Scaled(Protocol):
    """The controller, as far as its number of replicas goes."""

    @property
    def desired(self) -> int: ...

    async def scale(self, replicas: int) -> None: ...


class WantedReplicas(Protocol):
    """Where the number of replicas is read."""

    def read(self) -> int:
        """Takes its time. OutriderError says why it cannot be read."""
        ...


def machine_provider(charge: Charge) -> MachineProvider:
    if charge.kubernetes_ray_cluster is None:
        return RayPlacement()
    from outrider.cluster.controller.kubernetes import RayClusterMachines, connect  # a second's import that few need

    return RayClusterMachines(connect(), charge.kubernetes_ray_cluster, charge.kubernetes_worker_group)


def wanted_replicas(charge: Charge) -> WantedReplicas | None:
    """None if no Deployment sets the number of replicas."""
    if charge.kubernetes_scale_deployment is None:
        return None
    from outrider.cluster.controller.kubernetes import DeploymentScale, connect_to_deployments

    return DeploymentScale(connect_to_deployments(), charge.kubernetes_scale_deployment)


async def follow(wanted: WantedReplicas | None, controller: Scaled, every_s: float = _EVERY_S) -> None:
    """Takes over each number of replicas that is wanted when it changes, until cancelled.

    Between changes the number is a user's: `outrider upgrade` needs one more for a while.
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
                logs.event(log, logging.WARNING, "number of replicas not known", reason=problem)
        await asyncio.sleep(every_s)
