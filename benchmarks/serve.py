"""Serving under load: requests that arrive by chance at a given rate, through the gateway, timed as a client sees them.

    .venv/bin/python benchmarks/serve.py [--rates 1,4,16] [--seconds 20] [--speculation off,auto] [--address HOST:PORT]

Serves the model itself unless told an address. Arrivals are Poisson and do not wait for answers: a server that falls
behind shows it in its times. The same arrivals, prompts and seeds meet each speculation in turn, on the same server,
which drafts unless a request says "off". A request's times count from when it was due.

Time to first token, and end to end; between tokens: the mean of each request, from its first token to its last;
between messages: every gap that a reader sees, however many tokens the next message brings.
"""

import argparse
import asyncio
import itertools
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from common import numbers, percentile, prompts, save, words
from served import Served

from outrider import AsyncClient, SamplingParams
from outrider.cluster.generation import Output
from outrider.workers.config import resolve_model
from outrider.workers.errors import OutriderError

PERCENTS = (50, 90, 99)
SEED = 1


@dataclass(slots=True, kw_only=True)
class Answered:
    """One request as its client saw it; seconds from when it was due."""

    error: str = ""  # the kind of error that ended it
    ended_s: float = 0.0
    messages: list[tuple[float, int]] = field(default_factory=list)  # that brought tokens: when, and how many

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.messages)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, `rate` a second by chance: the same for the same seed."""
    rng, due = random.Random(seed), list[float]()
    at = rng.expovariate(rate)
    while at < seconds:
        due.append(at)
        at += rng.expovariate(rate)
    return due


def summary(answers: Sequence[Answered], seconds: float) -> dict[str, Any]:
    """Percentiles over the requests that were answered whole; `seconds`: until the last of all had ended."""
    whole = [answer for answer in answers if not answer.error and answer.messages]
    failed = [answer.error or "no tokens" for answer in answers if answer.error or not answer.messages]
    figures: dict[str, Any] = {
        "requests": len(answers),
        "errors": dict(Counter(failed)),
        "tokens_per_second": sum(answer.tokens for answer in whole) / seconds,
    }
    times = {
        "first_token_s": [answer.messages[0][0] for answer in whole],
        "between_tokens_s": [between for answer in whole if (between := between_tokens(answer)) is not None],
        "between_messages_s": [gap for answer in whole for gap in gaps(answer)],
        "end_to_end_s": [answer.ended_s for answer in whole],
    }
    for name, values in times.items():
        figures[name] = {f"p{percent}": percentile(values, percent) for percent in PERCENTS} if values else None
    return figures


def between_tokens(answer: Answered) -> float | None:
    """Seconds a token after the first message; None if nothing came after it."""
    later = sum(count for _, count in answer.messages[1:])
    return (answer.messages[-1][0] - answer.messages[0][0]) / later if later else None


def gaps(answer: Answered) -> list[float]:
    at = [when for when, _ in answer.messages]
    return [later - earlier for earlier, later in itertools.pairwise(at)]


async def ask(client: AsyncClient, text: str, params: SamplingParams, since_due: Callable[[], float]) -> Answered:
    answer = Answered()
    try:
        async for event in client.stream(text, params=params, timeout_s=120):
            if isinstance(event, Output) and event.token_ids:
                answer.messages.append((since_due(), len(event.token_ids)))
    except OutriderError as error:
        answer.error = type(error).__name__
    answer.ended_s = since_due()
    return answer


async def load(client: AsyncClient, args: argparse.Namespace, rate: float, speculation: str) -> dict[str, Any]:
    """One rate at one speculation, until every request has ended."""
    texts = [text for pair in zip(prompts("code", 40), prompts("prose", 40), strict=True) for text in pair]
    began = time.perf_counter()

    async def request(number: int, due: float) -> Answered:
        await asyncio.sleep(began + due - time.perf_counter())
        params = SamplingParams(
            temperature=args.temperature,
            max_tokens=args.tokens,
            ignore_eos=True,
            seed=SEED + number,
            speculation=int(speculation) if speculation.isdigit() else speculation,
        )
        return await ask(client, texts[number % len(texts)], params, lambda: time.perf_counter() - began - due)

    due = arrivals(rate, args.seconds, SEED)
    answers = await asyncio.gather(*(request(number, at) for number, at in enumerate(due)))
    figures = summary(answers, time.perf_counter() - began)
    return {"rate": rate, "speculation": speculation, **figures}


async def measure(address: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    windows = []
    async with AsyncClient(address) as client:
        for speculation in args.speculation:  # a server's first requests are slower than later ones
            await load(client, argparse.Namespace(**{**vars(args), "seconds": 2.0}), 4.0, speculation)
        for rate in args.rates:
            for speculation in args.speculation:
                windows.append(await load(client, args, rate, speculation))
                print(line(windows[-1]), flush=True)
    return windows


def line(window: dict[str, Any]) -> str:
    parts = [f"{window['rate']:g} requests/s, {window['speculation']}: {window['tokens_per_second']:.0f} tokens/s"]
    for name in ("first_token_s", "between_tokens_s", "end_to_end_s"):
        values = window[name]
        if values:
            what = name.removesuffix("_s").replace("_", " ")
            parts.append(f"{what} {' / '.join(f'{1e3 * value:.1f}' for value in values.values())} ms")
    if window["errors"]:
        parts.append(f"errors {window['errors']}")
    return "; ".join(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--pipeline-parallel-size", type=int, default=1)
    parser.add_argument("--address", help="HOST:PORT of a gateway that is there already")
    parser.add_argument("--rates", type=numbers, default=[1, 4, 16], help="requests a second")
    parser.add_argument("--seconds", type=float, default=20, help="that requests arrive for, at each rate")
    parser.add_argument("--speculation", type=words, default=["off", "auto"])
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--tokens", type=int, default=64, help="of output, of each request")
    parser.add_argument("--name", help="of the file of results (serve-MODEL)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    options = ["--model", args.model, "--pipeline-parallel-size", str(args.pipeline_parallel_size)]
    with nullcontext() if args.address else Served("bench-serve", *options) as served:
        windows = asyncio.run(measure(served.address if served else args.address, args))
    name = args.name or f"serve-{resolve_model(args.model).name}"
    command = f"benchmarks/serve.py {shlex.join(sys.argv[1:])}".strip()
    figures = {"seconds": args.seconds, "tokens": args.tokens, "temperature": args.temperature, "windows": windows}
    print("written to", save(name, command, figures))


if __name__ == "__main__":
    main()
