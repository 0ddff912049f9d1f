"""A day of load in a minute, each hour with every depth in turn. Part of auto_against_depths.py."""

import argparse
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.timed_batches import BatchLLM
from benchmarks.speculation.depth_arms import SEED, Engines, against, params, statics
from benchmarks.speculation.record_rounds import TEXTS, Text
from outrider.cluster.client.bench import arrivals
from outrider.workers.types.requests.request import SequenceChunk


@dataclass(slots=True, eq=False)
class Busy:
    """Tokens, and the seconds in which at least one request ran. Its methods may be called from any thread."""

    clock: Callable[[], float] = time.perf_counter
    tokens: int = 0
    seconds: float = 0.0
    error: str = ""
    _live: int = 0
    _since: float = 0.0
    _idle: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        with self._lock:
            if not self._live:
                self._since = self.clock()
                self._idle.clear()
            self._live += 1

    def __call__(self, chunks: Sequence[SequenceChunk]) -> None:
        """What an engine delivers."""
        with self._lock:
            for chunk in chunks:
                self.error = chunk.error or self.error
                self.tokens += len(chunk.token_ids)
                self._live -= chunk.finish_reason is not None
            if not self._live or self.error:
                self.seconds += self.clock() - self._since
                self._idle.set()

    def wait(self, timeout_s: float) -> None:
        if not self._idle.wait(timeout_s):
            raise RuntimeError(f"requests have not ended after {timeout_s:.0f} s")
        if self.error:
            raise RuntimeError(self.error)


def hourly_rates(peak: float, hours: int) -> list[float]:
    """Requests a second by hour: from a tenth of the peak up to it and down again."""
    return [peak * (0.1 + 0.9 * math.sin(math.pi * (hour + 0.5) / hours) ** 2) for hour in range(hours)]


def replay(engines: Engines, args: argparse.Namespace) -> dict[str, Any]:
    """Every hour with each arm in turn, on the same arrivals, prompts and seeds."""
    kinds = [text for text in TEXTS if text.temperature == 0.8]
    texts = [(text, prompt) for text in kinds for prompt in engines.prompts(text.kind, 12)]
    rates = hourly_rates(args.peak, args.hours)
    hours, ran = [], []
    for hour, rate in enumerate(rates):
        due = arrivals(rate, args.hour_s, SEED + hour)
        arms = {arm: one_hour(engines.of(arm), texts, arm, due, args, hour) for arm in args.speculation}
        figures = {arm: busy.tokens / busy.seconds if busy.seconds else None for arm, busy in arms.items()}
        hours.append({"rate": rate, "tokens_per_busy_second": figures})
        ran.append(arms)
        print(f"hour {hour}, {rate:.1f} requests/s: {_listed(figures)}", flush=True)
    speeds = {arm: rate_of([busy[arm] for busy in ran]) for arm in args.speculation}
    told = {arm: {"tokens_per_second": speed} for arm, speed in speeds.items()}
    found = against(speeds)
    if found["best_static"] is not None:
        found["luckiest_by_hour_over_best"] = luckiest_by_hour(ran) / speeds[found["best_static"]]
    return {"hour_s": args.hour_s, "hours": hours, "arms": told, **found}


def rate_of(hours: Sequence[Busy]) -> float:
    """Tokens a busy second."""
    return sum(busy.tokens for busy in hours) / sum(busy.seconds for busy in hours)


def luckiest_by_hour(hours: Sequence[Mapping[str, Busy]]) -> float:
    """Tokens a busy second of the static depth that was fastest in each hour, by luck or not.

    So much there is to win by changing the depth from hour to hour, or less.
    """
    ran = [list(statics(dict(arms)).values()) for arms in hours]
    return rate_of([max(each, key=lambda busy: busy.tokens / busy.seconds) for each in ran if each[0].seconds])


def one_hour(
    llm: BatchLLM,
    texts: Sequence[tuple[Text, list[int]]],
    arm: str,
    due: Sequence[float],
    args: argparse.Namespace,
    hour: int,
) -> Busy:
    busy, began = Busy(), time.perf_counter()
    for number, at in enumerate(due):
        time.sleep(max(0.0, began + at - time.perf_counter()))
        text, prompt = texts[(37 * hour + 5 * number) % len(texts)]
        own = params(arm, text.temperature, args.tokens, SEED + 1000 * hour + number)
        (request,) = llm._requests([prompt], own)
        busy.begin()
        llm._host.engine.submit(request, busy)
    if due:
        busy.wait(600.0)
    return busy


def _listed(figures: dict[str, float | None]) -> str:
    return ", ".join(f"{arm} {value:.0f}" if value else f"{arm} -" for arm, value in figures.items())
