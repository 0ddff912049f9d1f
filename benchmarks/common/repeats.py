"""Runs what is compared in turns, and reduces the figures of the turns to one."""

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def interleaved(arms: Mapping[Name, Callable[[], float]], repeats: int) -> dict[Name, list[float]]:
    """Runs the arms in turn, so that changes of the machine's speed meet all alike. Each arm returns its figure.

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
    """Each arm over the reference: the median over turns, since a machine's speed changes more slowly."""
    of = figures[reference]
    return {name: median([a / b for a, b in zip(own, of, strict=True)]) for name, own in figures.items()}


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
