"""Times the transports that a group could use. Shared memory nearly always wins.

It does not if a machine's ranks run on distant sockets, or if its kernel wakes threads slowly. Candidates are compared
by the slowest rank's times, so all ranks of a group choose the same.
"""

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.workers.parallel.collectives.collectives import Collectives

PURPOSE = "trial"
PART_BYTES = (1 << 10, 1 << 14, 1 << 18)  # per rank: slices of one decoded row, of many rows, of a prompt
_REPEATS = 5  # timed, after one for warm-up


def trial_seconds(candidates: Sequence[Collectives]) -> list[float]:
    """Seconds of a gather and an exchange of each size over each candidate, on the group's slowest rank.

    Collective: every rank of the group must call it, with the same candidates. Every rank gets the same list.
    """
    taken: list[list[list[float]]] = [[[] for _ in PART_BYTES] for _ in candidates]  # by candidate, size, repeat
    for repeat in range(1 + _REPEATS):
        for candidate, by_size in zip(candidates, taken, strict=True):
            for size, repeats in zip(PART_BYTES, by_size, strict=True):
                seconds = _one_repeat(candidate, size)
                if repeat:
                    repeats.append(seconds)
    own = torch.tensor([sum(map(statistics.median, by_size)) for by_size in taken], dtype=torch.float64)
    every: Tensor = candidates[0].gather(own, PURPOSE)  # [ranks, candidates]
    return [float(slowest) for slowest in every.amax(dim=0)]


def _one_repeat(candidate: Collectives, size: int) -> float:
    """Seconds, from the candidate's own traffic counter."""
    part = torch.zeros(candidate.size, size // candidate.size, dtype=torch.uint8)
    before = _seconds(candidate)
    candidate.gather(part, PURPOSE)
    candidate.exchange(part, [1] * candidate.size, [1] * candidate.size, PURPOSE)
    return _seconds(candidate) - before


def _seconds(candidate: Collectives) -> float:
    carried = candidate.traffic.get(PURPOSE)
    return 0.0 if carried is None else carried.seconds
