"""Prompts of the benchmarks, cut from held-out text. Knows nothing of the engine."""

import itertools
import json

from benchmarks.common.results import ROOT


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
