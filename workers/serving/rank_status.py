"""RankStatus: the state and counters that a rank reports."""

import dataclasses
import json
from dataclasses import dataclass, field

from outrider.workers.engine.handle import EngineInfo
from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.types.counters import EngineCounters, ExpertFigures, SpeculationFigures

STATUS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus:
    """What a rank reports when it is probed."""

    state: str = "loading"  # "loading", "ready" or "failed"
    loaded: float = 0.0  # share of the weights, 0..1
    error: str = ""
    stall: str = ""  # leader only: what hangs, and the latest rounds; "" if nothing does
    computing_s: float = 0.0  # time in the current round's computation; 0 while it waits for other ranks
    service_address: str = ""  # leader only, once ready
    busy_s: float = 0.0  # spent computing rounds
    draft_s: float = 0.0  # of those, drafting; leader only
    held_up_s: float = 0.0  # longest delay of a round by a command to move experts
    elapsed_s: float = 0.0  # since ready
    counters: EngineCounters = field(default_factory=EngineCounters)
    traffic: dict[str, Traffic] = field(default_factory=dict)  # of collectives, by purpose
    carriers: str = ""  # transports of the collectives: "shared memory", "gloo", "nccl", or several
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
