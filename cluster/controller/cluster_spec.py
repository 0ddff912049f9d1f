"""The specification of a cluster, from which the controller starts its replicas."""

import hashlib
from dataclasses import dataclass, field

import outrider
from outrider.cluster.controller.reconcile import Deadlines
from outrider.cluster.controller.scaling.autoscale import AutoscalePolicy
from outrider.cluster.planning.shard_plan import ShardPlan
from outrider.workers.config import EngineConfig
from outrider.workers.serving.actor import RankFactory
from outrider.workers.serving.rank import Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Does not change between generations of a replica, nor when the controller restarts."""

    cluster: str
    model_name: str
    model_path: str
    engine: EngineConfig
    plan: ShardPlan
    key: str = field(default="", repr=False)  # the cluster key, see workers/serving/rpc/cluster_key.py
    controller_host: str = ""  # "": loopback, or its node's address if there are more nodes
    controller_port: int = 0  # 0: any free port
    leader_ports: tuple[int, int] = (0, 0)  # first and last; 0: any free port
    factory: RankFactory = Rank
    deadlines: Deadlines = field(default_factory=Deadlines)
    replicas: int = 1
    drain_grace_s: float = 300.0  # how long a draining replica may finish its requests before they move to another
    ranks_per_node: int | None = None  # on nodes that an autoscaler adds
    may_grow: bool = False  # the Ray cluster is shared: replicas wait for resources instead of failing
    autoscale: AutoscalePolicy | None = None  # None: `outrider scale` sets the number of replicas
    kubernetes_ray_cluster: str | None = None  # NAMESPACE/NAME; its worker group is scaled with the replicas
    kubernetes_worker_group: str = "workers"
    kubernetes_scale_deployment: str | None = None  # NAMESPACE/NAME; its number of pods sets the number of replicas
    otlp_endpoint: str = ""  # collector of spans; "": none

    @property
    def identity(self) -> str:
        """A hash of everything that ranks depend on. A controller can adopt ranks of a spec with the same identity."""
        parts = (outrider.__version__, self.model_path, self.engine.to_json(), self.plan, self.leader_ports, self.key)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
