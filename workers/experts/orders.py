"""The leader's orders about experts, as integers in a Round; the Verdict has the answer.

A round carries at most one order. Ranks execute it before the round, so all ranks of a stage do so at the same point.
"""

from enum import IntEnum

import numpy as np

from outrider.workers.experts.placement import IntArray


class Order(IntEnum):
    """The first integer of an order; a round without an order carries no integers."""

    REPORT = 1  # answer, for each layer: its number, and the rows of each expert since the last report
    PREPARE = 2  # followed by a layer and the new expert of each slot: read missing experts beside the rounds
    ASK = 3  # answer: the worst State of all preparing ranks
    SWITCH = 4  # use the prepared table from this round on


class State(IntEnum):
    """The progress of a rank's preparation, best first."""

    READY = 0
    READING = 1
    FAILED = 2


NOTHING = np.empty(0, dtype=np.int64)


def order(kind: Order) -> IntArray:
    return np.array([kind], dtype=np.int64)


def prepare(layer: int, table: IntArray) -> IntArray:
    """`table` [ranks, slots per rank]."""
    return np.concatenate([[Order.PREPARE, layer], table.ravel()]).astype(np.int64)
