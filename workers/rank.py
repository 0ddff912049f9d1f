"""One rank: joins its replica's group, loads its layers, runs rounds until told to stop.

The same class runs in this process (LLM), as a local process (`python -m outrider.workers.rank`, see local.py) and
inside a Ray actor (actor.py). It never looks for its place in the world: the RankSpec says it.
"""

import contextlib
import dataclasses
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from outrider.workers.config import EngineConfig
from outrider.workers.engine.handle import EngineHandle, EngineInfo
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.parallel.traffic import Traffic
from outrider.workers.request_times import Observation
from outrider.workers.types.counters import EngineCounters, ExpertFigures, SpeculationFigures
from outrider.workers.types.errors import OutriderError

if TYPE_CHECKING:
    from outrider.workers.roles import Follower, Leader

log = logging.getLogger("outrider.rank")
STATUS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """A rank's place: which layers, which group, which generation of which replica."""

    engine: EngineConfig
    layer_splits: tuple[tuple[int, int], ...]  # by stage: first layer, one past the last
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # its place among the ranks that share the devices that its process sees
    master_address: str = "127.0.0.1"
    master_port: int = 0
    generation: int = 1
    restarts: int = 0  # generations of the replica that followed a failed one
    replica: str = "r0"
    service_host: str | None = (
        None  # where the leader's EngineService listens; None: nowhere, the engine is used in process
    )
    service_ports: tuple[int, int] = (0, 0)  # the first free one of them, first and last included; 0: any
    service_key: str = field(default="", repr=False)  # who has it may call the leader
    otlp_endpoint: str = ""  # where the leader's spans go; "": nowhere

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


class Rank:
    """`load`, then `run`, from one thread; `stop` and `status` from any."""

    def __init__(self, spec: RankSpec) -> None:
        self.spec = spec
        self._status = RankStatus()
        self._ready_at = 0.0
        self._role: Leader | Follower | None = None

    def load(self, on_progress: Callable[[float], None] = lambda share: None) -> None:
        """Joins the group and loads the weights; blocks. OutriderError or ValueError says what was wrong.

        `on_progress` hears the share that is loaded, 0..1, from whichever thread loads.
        """

        def loaded(share: float) -> None:
            self._update(loaded=share)
            on_progress(share)

        with self._failing(OutriderError, ValueError):
            from outrider.workers.loading import load_role  # torch loads here, not with the control plane

            self._role = load_role(self.spec, loaded, self._give_up)

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Warms up, calls `on_ready`, serves until stopped. EngineStoppedError names the rank that was lost."""
        assert self._role is not None, "load() comes first"

        def ready(service_address: str) -> None:
            self._on_ready(service_address)
            on_ready()

        with self._failing(OutriderError):
            self._role.run(ready)

    def stop(self, reason: str = "the engine was stopped") -> None:
        """Makes the leader's `run` return, and with it every other rank's."""
        if self._role is not None:
            self._role.stop(reason)

    @property
    def engine(self) -> EngineHandle:
        """The leader's engine, for use in this process."""
        engine = self._role.engine if self._role is not None else None
        assert engine is not None, "only a loaded leader has an engine"
        return engine

    def take_observations(self) -> list[Observation]:
        """Requests that ended since the last call; the leader's only."""
        return self._role.times.take() if self._role is not None else []

    def status(self) -> RankStatus:
        if self._role is None or self._status.state != "ready":
            return self._status
        return dataclasses.replace(
            self._status,
            busy_s=self._role.busy_s,
            draft_s=self._role.draft_s,
            held_up_s=self._role.held_up_s,
            elapsed_s=time.monotonic() - self._ready_at,
            stall=self._role.stall,
            computing_s=self._role.computing_s,
            counters=self._role.counters,
            traffic=self._role.traffic,
            carriers=self._role.carriers,
        )

    def _on_ready(self, service_address: str) -> None:
        self._ready_at = time.monotonic()
        info = self._role.engine.info if self._role is not None and self._role.engine is not None else None
        self._update(state="ready", loaded=1.0, service_address=service_address, info=info)

    def _give_up(self, reason: str) -> None:
        """Ends the process: a device of it waits for another rank, and nothing else would end that."""
        error = f"{self.spec.describe(self.spec.rank)}: {reason}"
        log.error("%s", error)
        self._update(state="failed", error=error)
        time.sleep(1.5 * STATUS_EVERY_S)  # whoever watches hears of it first
        os._exit(1)

    def _update(self, **changes: Any) -> None:
        self._status = dataclasses.replace(self._status, **changes)

    @contextlib.contextmanager
    def _failing(self, *explained: type[Exception]) -> Iterator[None]:
        """Puts what goes wrong inside into the status; what is not `explained` with its type and place."""
        try:
            yield
        except explained as error:
            self._update(state="failed", error=str(error))
            raise
        except Exception as error:
            self._update(state="failed", error=f"{self.spec.describe(self.spec.rank)}: {type(error).__name__}: {error}")
            raise


def main() -> int:
    """A rank as a local process: its spec is one line on stdin, its statuses are lines on stdout.

    Ends when the parent's end of stdin closes, however the parent died.
    """
    logging.basicConfig(level=os.environ.get("OUTRIDER_LOG_LEVEL", "WARNING"), stream=sys.stderr)
    statuses = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints goes to stderr
    rank = Rank(RankSpec.from_json(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_report, args=(rank, statuses), daemon=True).start()
    try:
        rank.load()
        rank.run()
    except OutriderError as error:
        log.debug("rank %d ended: %s", rank.spec.rank, error)
        return 1
    except Exception:
        log.exception("rank %d failed", rank.spec.rank)
        return 1
    finally:
        statuses.write(rank.status().to_json() + "\n")
    return 0


def _report(rank: Rank, statuses: TextIO) -> None:
    """Says how the rank is, once a second: silence tells the parent that the process is frozen."""
    while True:
        statuses.write(rank.status().to_json() + "\n")
        time.sleep(STATUS_EVERY_S if rank.status().state == "ready" else STATUS_EVERY_S / 10)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
