"""How long requests take, as their engine sees it: one observation a request, made when it ends."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outrider.workers.engine.handle import Deliver, EngineHandle, EngineInfo
from outrider.workers.engine.request import EngineCounters, Request, SequenceChunk

_KEPT = 10_000  # observations that nobody has taken yet; then the oldest go


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One request that has ended. Times are seconds from its submission."""

    reason: str  # "stop", "length" or "cancelled" of its last output, or "error"
    latency_s: float
    time_to_first_token_s: float | None = None  # None: it had no token
    time_per_output_token_s: float | None = None  # after the first; None: there was no second


@dataclass(slots=True)
class _Live:
    began: float
    outputs: int  # still running
    first_token: float | None = None
    tokens: int = 0


@dataclass(slots=True)
class RequestTimes:
    """Collects observations: the engine's thread records, another takes."""

    clock: Callable[[], float] = time.monotonic
    _live: dict[str, _Live] = field(default_factory=dict)
    _ended: deque[Observation] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, request: Request) -> None:
        with self._lock:
            self._live[request.request_id] = _Live(self.clock(), len(request.outputs))

    def forget(self, request_id: str) -> None:
        """The engine refused it."""
        with self._lock:
            self._live.pop(request_id, None)

    def record(self, chunks: Sequence[SequenceChunk]) -> None:
        now = self.clock()
        with self._lock:
            for chunk in chunks:
                if chunk.request_id in self._live:
                    self._record(chunk, self._live[chunk.request_id], now)

    def _record(self, chunk: SequenceChunk, live: _Live, now: float) -> None:
        live.tokens += len(chunk.token_ids)
        if live.first_token is None and live.tokens:
            live.first_token = now
        live.outputs -= chunk.finish_reason is not None
        if chunk.error or live.outputs == 0:
            del self._live[chunk.request_id]
            self._ended.append(_observe(chunk, live, now))

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


def _observe(last: SequenceChunk, live: _Live, now: float) -> Observation:
    first = live.first_token
    return Observation(
        reason=last.finish_reason.value if last.finish_reason is not None else "error",
        latency_s=now - live.began,
        time_to_first_token_s=None if first is None else first - live.began,
        time_per_output_token_s=None if first is None or live.tokens < 2 else (now - first) / (live.tokens - 1),
    )


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A subscriber that is recorded. Equal for equal subscribers: the engine calls each once a round."""

    deliver: Deliver
    times: RequestTimes = field(compare=False)

    def __call__(self, chunks: list[SequenceChunk]) -> None:
        self.times.record(chunks)
        self.deliver(chunks)


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
        self._times.begin(request)
        try:
            self._engine.submit(request, _Recorded(deliver, self._times))
        except Exception:
            self._times.forget(request.request_id)
            raise

    def cancel(self, request_id: str, index: int | None = None) -> None:
        self._engine.cancel(request_id, index)

    def swap_drafter(self, checkpoint: str) -> None:
        self._engine.swap_drafter(checkpoint)
