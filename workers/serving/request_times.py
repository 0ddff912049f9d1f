"""How long requests take, as their engine sees it: one observation a request, made when it ends."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from outrider.workers.engine.handle import Deliver, EngineHandle, EngineInfo
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.request import Request, SequenceChunk

_KEPT = 10_000  # observations not yet collected; then the oldest go


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One request that has ended. Times are seconds from its submission."""

    reason: str  # "stop", "length" or "cancelled" of its last output, or "error"
    latency_s: float
    queued_s: float | None = None  # until its first round; None: it had none
    time_to_first_token_s: float | None = None  # None: it had no token
    time_per_output_token_s: float | None = None  # after the first; None: there was no second


@dataclass(slots=True)
class RequestRecord:
    """A request, from its submission on. Times are the clock's."""

    request: Request
    began: float
    outputs: int  # still running
    deliver: Deliver | None = None
    first_round: float | None = None
    first_token: float | None = None
    ended: float = 0.0
    reason: str = ""  # why it ended, as in its observation
    error: str = ""
    tokens: int = 0
    rounds: int = 0  # that gave tokens
    drafted: int = 0
    accepted: int = 0

    def add(self, chunk: SequenceChunk, now: float) -> None:
        self.tokens += len(chunk.token_ids)
        self.rounds += bool(chunk.token_ids)
        self.drafted += chunk.drafted
        self.accepted += chunk.accepted
        if self.first_token is None and self.tokens:
            self.first_token = now
        self.outputs -= chunk.finish_reason is not None
        if chunk.error or self.outputs == 0:
            self.ended, self.error = now, chunk.error
            self.reason = chunk.finish_reason.value if chunk.finish_reason is not None else "error"

    @property
    def observation(self) -> Observation:
        """Once it has ended."""
        first, last, began = self.first_token, self.ended, self.began
        return Observation(
            reason=self.reason,
            latency_s=last - began,
            queued_s=None if self.first_round is None else self.first_round - began,
            time_to_first_token_s=None if first is None else first - began,
            time_per_output_token_s=None if first is None or self.tokens < 2 else (last - first) / (self.tokens - 1),
        )


@dataclass(slots=True)
class RequestTimes:
    """Collects observations: the engine's thread records, another takes. `on_end` gets each record that is whole."""

    clock: Callable[[], float] = time.monotonic
    on_end: Callable[[RequestRecord], None] = lambda record: None
    _live: dict[str, RequestRecord] = field(default_factory=dict)
    _ended: deque[Observation] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, request: Request, deliver: Deliver | None = None) -> None:
        """`deliver` hears when its first round starts."""
        with self._lock:
            self._live[request.request_id] = RequestRecord(request, self.clock(), len(request.outputs), deliver)

    def forget(self, request_id: str) -> None:
        """The engine refused it."""
        with self._lock:
            self._live.pop(request_id, None)

    def scheduled(self, request_ids: Sequence[str]) -> None:
        """Of each of these an output has its first round now."""
        now, told = self.clock(), defaultdict[Deliver, list[SequenceChunk]](list)
        with self._lock:
            for record in filter(None, map(self._live.get, request_ids)):
                if record.first_round is None and record.deliver is not None:
                    told[record.deliver].append(SequenceChunk(request_id=record.request.request_id, began=True))
                record.first_round = now if record.first_round is None else record.first_round
        for deliver, chunks in told.items():
            deliver(chunks)

    def record(self, chunks: Sequence[SequenceChunk]) -> list[SequenceChunk]:
        """The chunks; those with a request's first token say how long it was queued."""
        now = self.clock()
        with self._lock:
            return [self._record(chunk, self._live.get(chunk.request_id), now) for chunk in chunks]

    def _record(self, chunk: SequenceChunk, live: RequestRecord | None, now: float) -> SequenceChunk:
        if live is None:
            return chunk
        is_first = live.first_token is None
        live.add(chunk, now)
        if live.reason:
            del self._live[chunk.request_id]
            self._ended.append(live.observation)
            self.on_end(live)
        if is_first and live.first_token is not None and live.first_round is not None:
            return replace(chunk, queued_s=live.first_round - live.began)
        return chunk

    def oldest_wait_s(self) -> float:
        """How long the request has waited that has waited longest for its first token; 0 if none waits."""
        with self._lock:
            began = min((live.began for live in self._live.values() if live.first_token is None), default=None)
        return 0.0 if began is None else self.clock() - began

    def take(self) -> list[Observation]:
        """What ended since the last call."""
        with self._lock:
            ended = list(self._ended)
            self._ended.clear()
        return ended


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A subscriber that is recorded. Equal for equal subscribers: the engine calls each once a round."""

    deliver: Deliver
    times: RequestTimes = field(compare=False)

    def __call__(self, chunks: list[SequenceChunk]) -> None:
        self.deliver(self.times.record(chunks))


class TimedEngine:
    """An engine whose requests are timed. Otherwise the engine itself."""

    def __init__(self, engine: EngineHandle, times: RequestTimes) -> None:
        self._engine, self._times = engine, times

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def counters(self) -> EngineCounters:
        return self._engine.counters

    def submit(self, request: Request, deliver: Deliver) -> None:
        self._times.begin(request, deliver)
        try:
            self._engine.submit(request, _Recorded(deliver, self._times))
        except Exception:
            self._times.forget(request.request_id)
            raise

    def cancel(self, request_id: str, index: int | None = None) -> None:
        self._engine.cancel(request_id, index)

    def swap_drafter(self, checkpoint: str) -> None:
        self._engine.swap_drafter(checkpoint)
