"""What the leader has ranks do about their experts, as integers that travel in a Round; its Verdict has the answer.

A round carries at most one order. Ranks obey it before they run the round, so all of a stage do so at the same place.
"""

from enum import IntEnum

import numpy as np

from outrider.workers.experts.placement import IntArray


class Order(IntEnum):
    """The first integer of an order; without any there is none."""

    REPORT = 1  # answered, by layer, with its number and how many rows chose each expert since the last report
    PREPARE = 2  # then a layer and which expert is to be in each slot: read what is lacking, beside the rounds
    ASK = 3  # answered with the worst State of the ranks that prepare
    SWITCH = 4  # from this round on rows go by what was prepared


class State(IntEnum):
    """How far a rank is with what it prepares, best first."""

    READY = 0
    READING = 1
    FAILED = 2


NOTHING = np.empty(0, dtype=np.int64)


def order(kind: Order) -> IntArray:
    return np.array([kind], dtype=np.int64)


def prepare(layer: int, table: IntArray) -> IntArray:
    """`table` [ranks, slots per rank]."""
    return np.concatenate([[Order.PREPARE, layer], table.ravel()]).astype(np.int64)
