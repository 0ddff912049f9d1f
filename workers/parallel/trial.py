"""Tries what could carry a group's collectives, and says which is fastest: memory that ranks share wins nearly always,
but not where a machine's ranks lie on distant sockets, or its kernel wakes sleepers slowly.

All ranks of a group come to the same answer: they judge by the slowest rank's times.
"""

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.workers.parallel.collectives import Collectives

PURPOSE = "trial"
PART_BYTES = (1 << 10, 1 << 14, 1 << 18)  # that a rank gives: a decoded row's slices, many rows', a prompt's
_TURNS = 5  # timed, after one that is not


def trial_seconds(candidates: Sequence[Collectives]) -> list[float]:
    """How long a gather and an exchange of each size take over each of one group's `candidates`, on its slowest rank.

    Every rank of the group must call it, with the same candidates. The same list everywhere.
    """
    taken: list[list[list[float]]] = [[[] for _ in PART_BYTES] for _ in candidates]  # by candidate, size, turn
    for turn in range(1 + _TURNS):
        for candidate, by_size in zip(candidates, taken, strict=True):
            for size, turns in zip(PART_BYTES, by_size, strict=True):
                seconds = _one_turn(candidate, size)
                if turn:
                    turns.append(seconds)
    own = torch.tensor([sum(map(statistics.median, by_size)) for by_size in taken], dtype=torch.float64)
    every: Tensor = candidates[0].gather(own, PURPOSE)  # [ranks, candidates]
    return [float(slowest) for slowest in every.amax(dim=0)]


def _one_turn(candidate: Collectives, size: int) -> float:
    """By the candidate's own clock."""
    part = torch.zeros(candidate.size, size // candidate.size, dtype=torch.uint8)
    before = _seconds(candidate)
    candidate.gather(part, PURPOSE)
    candidate.exchange(part, [1] * candidate.size, [1] * candidate.size, PURPOSE)
    return _seconds(candidate) - before


def _seconds(candidate: Collectives) -> float:
    carried = candidate.traffic.get(PURPOSE)
    return 0.0 if carried is None else carried.seconds
