"""The specification that a controller is given: what to keep running."""

import hashlib
from dataclasses import dataclass, field

import outrider
from outrider.cluster.controller.autoscale import AutoscalePolicy
from outrider.cluster.controller.reconcile import Deadlines
from outrider.cluster.planning.shard_plan import ShardPlan
from outrider.workers.config import EngineConfig
from outrider.workers.serving.actor import RankFactory
from outrider.workers.serving.rank import Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """The same for each generation of a replica, and for a controller that was restarted."""

    cluster: str
    model_name: str
    model_path: str
    engine: EngineConfig
    plan: ShardPlan
    key: str = field(default="", repr=False)  # the cluster's, see workers/serving/cluster_key.py
    controller_host: str = ""  # "": loopback, or its node's address with more nodes
    controller_port: int = 0  # 0: a free one
    leader_ports: tuple[int, int] = (0, 0)  # first and last; 0: any
    factory: RankFactory = Rank
    deadlines: Deadlines = field(default_factory=Deadlines)
    replicas: int = 1
    drain_grace_s: float = 300.0  # how long a leaving replica may finish its requests before they move to another
    ranks_per_node: int | None = None  # of the nodes that an autoscaler may bring
    may_grow: bool = False  # the Ray cluster is shared: replicas without room wait for it
    autoscale: AutoscalePolicy | None = None  # None: as many replicas as `outrider scale` says
    kubernetes_ray_cluster: str | None = None  # NAMESPACE/NAME, whose worker group follows the number of replicas
    kubernetes_worker_group: str = "workers"
    kubernetes_scale_deployment: str | None = None  # NAMESPACE/NAME, whose number of pods is the number of replicas
    otlp_endpoint: str = ""  # where spans go; "": nowhere

    @property
    def identity(self) -> str:
        """Equal for charges whose ranks get the same instructions: a controller can adopt ranks of an equal charge."""
        told = (outrider.__version__, self.model_path, self.engine.to_json(), self.plan, self.leader_ports, self.key)
        return hashlib.sha256(repr(told).encode()).hexdigest()
