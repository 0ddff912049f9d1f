"""A rank's specification: its place among the ranks, and the settings of its engine."""

import dataclasses
import json
from dataclasses import dataclass, field

from outrider.workers.config import EngineConfig
from outrider.workers.parallel.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """A rank's place: which layers, which group, which generation of which replica."""

    engine: EngineConfig
    layer_splits: tuple[tuple[int, int], ...]  # by stage: first layer, one past the last
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # its index among the ranks that share the devices visible to its process
    master_address: str = "127.0.0.1"
    master_port: int = 0
    generation: int = 1
    restarts: int = 0  # how often the replica was restarted after a failure
    replica: str = "r0"
    service_host: str | None = None  # where the leader's EngineService listens; None: the engine is used in process
    service_ports: tuple[int, int] = (0, 0)  # the first free one of them, first and last included; 0: any
    service_key: str = field(default="", repr=False)  # callers of the leader need it
    otlp_endpoint: str = ""  # receives the leader's spans; "": none

    @property
    def mesh(self) -> Mesh:
        return Mesh.of(self.engine)

    @property
    def layers(self) -> range:
        return range(*self.layer_splits[self.mesh.place(self.rank).stage])

    def describe(self, rank: int) -> str:
        """A rank's name in errors, e.g. "rank 1 (stage 1, layers 7..12)"."""
        return self.mesh.describe(self.layer_splits, rank)

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "engine": self.engine.to_json()})

    @classmethod
    def from_json(cls, text: str) -> "RankSpec":
        values = json.loads(text)
        values["layer_splits"] = tuple((first, end) for first, end in values["layer_splits"])
        values["service_ports"] = tuple(values["service_ports"])
        return cls(**{**values, "engine": EngineConfig.from_json(values["engine"])})
