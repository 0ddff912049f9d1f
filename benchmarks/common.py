"""What the benchmarks share: prompts, repeats, and how a result is written down. Knows nothing of the engine."""

import itertools
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Name = TypeVar("Name", bound=Hashable)


def prompts(kind: str, count: int) -> list[str]:
    """Held-out text of a kind, "code" or "prose"."""
    return list(json.loads((ROOT / "cluster" / "client" / "prompts.json").read_text())[kind][:count])


def windows(texts: list[list[int]], length: int, count: int) -> list[list[list[int]]]:
    """Sets of `count` prompts of `length` tokens, each starting with another text and running on into the next."""
    starts = []
    for i in range(len(texts)):
        running_on = itertools.islice(itertools.cycle(texts), i, None)
        starts.append(list(itertools.islice(itertools.chain.from_iterable(running_on), length)))
    return [starts[i : i + count] for i in range(0, len(starts) - count + 1, count)]


def interleaved(arms: Mapping[Name, Callable[[], float]], repeats: int) -> dict[Name, list[float]]:
    """Runs the arms in turn, so that the machine's moods meet all alike. Each arm returns its figure.

    Each turn has an order of its own: what ran just before leaves caches behind.
    """
    figures: dict[Name, list[float]] = {name: [] for name in arms}
    order, rng = list(arms), random.Random(0)
    for _ in range(repeats):
        for name in order:
            figures[name].append(arms[name]())
        rng.shuffle(order)
    return figures


def paired(figures: Mapping[Name, Sequence[float]], reference: Name) -> dict[Name, float]:
    """Each arm over the reference: the median over turns, since the machine's moods outlast a turn."""
    of = figures[reference]
    return {name: median([a / b for a, b in zip(own, of, strict=True)]) for name, own in figures.items()}


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def numbers(text: str) -> list[int]:
    """A command line's "1,2,4"."""
    return [int(part) for part in text.split(",") if part]


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def record(command: str, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with what it takes to repeat them."""
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return {
        "command": command,
        "OMP_NUM_THREADS": threads,
        "machine": machine(),
        "date": date.today().isoformat(),
        **figures,
    }


def save(name: str, command: str, figures: dict[str, Any]) -> Path:
    """Writes results/NAME.json with what it takes to repeat it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record(command, figures), indent=1) + "\n")
    return path
