"""Load generator: Poisson arrivals at a given rate, with latencies measured at the client.

Arrivals do not wait for answers (open loop). Latencies count from a request's scheduled arrival, so they include the
delays of an overloaded server. The same seed gives the same arrivals and requests, so that settings can be compared.
"""

import asyncio
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from outrider.cluster.api.generation import Output
from outrider.cluster.client.async_client import AsyncClient
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.requests.sampling_params import SamplingParams

PERCENTS = (50, 90, 99)
SEED = 1
TIMEOUT_S = 120.0
WARM_UP = (4.0, 2.0)  # requests per second, and seconds: a server's first requests are slower


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A measurement with one rate, one speculation setting and one duration."""

    rate: float  # requests per second
    seconds: float  # duration of the arrivals
    speculation: str | int
    max_tokens: int = 64
    temperature: float = 0.8

    def params(self, number: int) -> SamplingParams:
        """The parameters of request `number`. Raises ValueError if a value is out of range."""
        return SamplingParams(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            ignore_eos=True,
            seed=SEED + number,
            speculation=self.speculation,
        )


@dataclass(slots=True, kw_only=True)
class Answered:
    """One request as its client saw it; times in seconds since its scheduled arrival."""

    error: str = ""  # type of the error that ended it
    ended_s: float = 0.0
    messages: list[tuple[float, int]] = field(default_factory=list)  # messages with tokens: time and number of tokens

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.messages)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Poisson arrival times at `rate` per second; the same for the same seed."""
    rng, due = random.Random(seed), list[float]()
    at = rng.expovariate(rate)
    while at < seconds:
        due.append(at)
        at += rng.expovariate(rate)
    return due


def summary(answers: Sequence[Answered], seconds: float) -> dict[str, Any]:
    """Percentiles over the completed requests. `seconds`: until the last request ended."""
    whole = [answer for answer in answers if not answer.error and answer.messages]
    failed = [answer.error or "no tokens" for answer in answers if answer.error or not answer.messages]
    times = {
        "first_token_s": [answer.messages[0][0] for answer in whole],
        "between_tokens_s": [between for answer in whole if (between := between_tokens(answer)) is not None],
        "between_messages_s": [gap for answer in whole for gap in gaps(answer)],
        "end_to_end_s": [answer.ended_s for answer in whole],
    }
    return {
        "requests": len(answers),
        "errors": dict(Counter(failed)),
        "tokens_per_second": sum(answer.tokens for answer in whole) / seconds,
        **{name: percentiles(values) for name, values in times.items()},
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Percentiles with linear interpolation; None if there are no values."""
    if not values:
        return None
    cuts = statistics.quantiles(values if len(values) > 1 else 2 * list(values), n=100, method="inclusive")
    return {f"p{percent}": cuts[percent - 1] for percent in PERCENTS}


def between_tokens(answer: Answered) -> float | None:
    """Seconds per token after the first message; None if there was only one."""
    later = sum(count for _, count in answer.messages[1:])
    return (answer.messages[-1][0] - answer.messages[0][0]) / later if later else None


def gaps(answer: Answered) -> list[float]:
    at = [when for when, _ in answer.messages]
    return [later - earlier for earlier, later in itertools.pairwise(at)]


def texts() -> list[str]:
    """The held-out prompts that ship with outrider, alternating between the domains."""
    kinds = json.loads(resources.files("outrider.cluster.client").joinpath("prompts.json").read_text("utf-8"))
    return [text for together in zip(*kinds.values(), strict=False) for text in together]


async def warm_up(client: AsyncClient, window: Window) -> None:
    """Sends some requests like the window's and discards their measurements."""
    rate, seconds = WARM_UP
    await load(client, Window(rate=rate, seconds=seconds, speculation=window.speculation, max_tokens=window.max_tokens))


async def load(client: AsyncClient, window: Window, done: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The window's figures, once every request has ended. Calls `done` after each request."""
    prompts, due = texts(), arrivals(window.rate, window.seconds, SEED)
    began = time.perf_counter()

    async def request(number: int, at: float) -> Answered:
        await asyncio.sleep(began + at - time.perf_counter())
        text, params = prompts[number % len(prompts)], window.params(number)
        answer = await _ask(client, text, params, lambda: time.perf_counter() - began - at)
        done()
        return answer

    answers = await asyncio.gather(*(request(number, at) for number, at in enumerate(due)))
    figures = summary(answers, time.perf_counter() - began)
    return {"rate": window.rate, "speculation": window.speculation, **figures}


async def _ask(client: AsyncClient, text: str, params: SamplingParams, since_due: Callable[[], float]) -> Answered:
    answer = Answered()
    try:
        async for event in client.stream(text, params=params, timeout_s=TIMEOUT_S):
            if isinstance(event, Output) and event.token_ids:
                answer.messages.append((since_due(), len(event.token_ids)))
    except OutriderError as error:
        answer.error = type(error).__name__
    answer.ended_s = since_due()
    return answer
