"""What a rank says of itself when it is probed."""

import dataclasses
import json
from dataclasses import dataclass, field

from outrider.workers.engine.handle import EngineInfo
from outrider.workers.parallel.traffic import Traffic
from outrider.workers.types.counters import EngineCounters, ExpertFigures, SpeculationFigures

STATUS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus:
    """What a rank says of itself when probed."""

    state: str = "loading"  # "loading", "ready" or "failed"
    loaded: float = 0.0  # share of the weights, 0..1
    error: str = ""
    stall: str = ""  # the leader's: what hangs, with the rounds before; "" while nothing does
    computing_s: float = 0.0  # how long it has been at its stage of a round; 0 while it waits for others
    service_address: str = ""  # the leader's, once ready
    busy_s: float = 0.0  # spent computing rounds
    draft_s: float = 0.0  # of those, drafting; the leader's
    held_up_s: float = 0.0  # the longest that an order about experts held a round up
    elapsed_s: float = 0.0  # since ready
    counters: EngineCounters = field(default_factory=EngineCounters)
    traffic: dict[str, Traffic] = field(default_factory=dict)  # of the collectives, by purpose
    carriers: str = ""  # of them: "shared memory", "gloo", "nccl", or several
    info: EngineInfo | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RankStatus":
        values = json.loads(text)
        info = values["info"]
        counters = EngineCounters(**values["counters"])
        counters.speculation = SpeculationFigures(**values["counters"]["speculation"])
        counters.experts = ExpertFigures.from_values(values["counters"]["experts"])
        read = {
            "counters": counters,
            "traffic": {purpose: Traffic(**carried) for purpose, carried in values["traffic"].items()},
            "info": EngineInfo(**info) if info else None,
        }
        return cls(**{**values, **read})
