"""Measures how long requests take at their engine: one observation for each request, made when it ends."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from outrider.workers.engine.handle import Deliver, EngineHandle, EngineInfo
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.requests.request import Request, SequenceChunk

_KEPT = 10_000  # observations not yet collected; beyond that the oldest are dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One request that has ended. Times are seconds from its submission."""

    reason: str  # the finish reason of its last output ("stop", "length", "cancelled"), or "error"
    latency_s: float
    queued_s: float | None = None  # until its first round; None without a round
    time_to_first_token_s: float | None = None  # None without a token
    time_per_output_token_s: float | None = None  # after the first token; None with fewer than two


@dataclass(slots=True)
class RequestRecord:
    """The record of a request, from its submission on. Times are readings of RequestTimes.clock."""

    request: Request
    began: float
    outputs: int  # outputs still running
    deliver: Deliver | None = None
    first_round: float | None = None
    first_token: float | None = None
    ended: float = 0.0
    reason: str = ""  # as in Observation
    error: str = ""
    tokens: int = 0
    rounds: int = 0  # rounds that produced tokens
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
        """Valid once the request has ended."""
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
    """Collects observations. Thread-safe. `on_end` is called with the record of each request that ended."""

    clock: Callable[[], float] = time.monotonic
    on_end: Callable[[RequestRecord], None] = lambda record: None
    _live: dict[str, RequestRecord] = field(default_factory=dict)
    _ended: deque[Observation] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, request: Request, deliver: Deliver | None = None) -> None:
        """`deliver` gets a chunk with `began` when the request's first round starts."""
        with self._lock:
            self._live[request.request_id] = RequestRecord(request, self.clock(), len(request.outputs), deliver)

    def forget(self, request_id: str) -> None:
        """Drops a request that the engine refused."""
        with self._lock:
            self._live.pop(request_id, None)

    def scheduled(self, request_ids: Sequence[str]) -> None:
        """Records that an output of each of these requests is in its first round now."""
        now, told = self.clock(), defaultdict[Deliver, list[SequenceChunk]](list)
        with self._lock:
            for record in filter(None, map(self._live.get, request_ids)):
                if record.first_round is None and record.deliver is not None:
                    told[record.deliver].append(SequenceChunk(request_id=record.request.request_id, began=True))
                record.first_round = now if record.first_round is None else record.first_round
        for deliver, chunks in told.items():
            deliver(chunks)

    def record(self, chunks: Sequence[SequenceChunk]) -> list[SequenceChunk]:
        """Records `chunks` and returns them; a chunk with a request's first token also gets `queued_s`."""
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
        """The longest time that a live request has waited for its first token so far; 0 if none waits."""
        with self._lock:
            began = min((live.began for live in self._live.values() if live.first_token is None), default=None)
        return 0.0 if began is None else self.clock() - began

    def take(self) -> list[Observation]:
        """Removes and returns the observations since the last call."""
        with self._lock:
            ended = list(self._ended)
            self._ended.clear()
        return ended


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Records chunks, then calls `deliver`. Equal if `deliver` is equal: the engine calls equal ones once a round."""

    deliver: Deliver
    times: RequestTimes = field(compare=False)

    def __call__(self, chunks: list[SequenceChunk]) -> None:
        self.deliver(self.times.record(chunks))


class TimedEngine:
    """An EngineHandle that records the times of its requests and passes every call on to `engine`."""

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
