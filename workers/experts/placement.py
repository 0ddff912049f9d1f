"""Where the copies of every expert are, and which copy processes a token. Does not know loads or weights.

placing.py decides a placement; ranks load and route by it. All copies of an expert compute the same output, so a
placement changes no token.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ExpertPlacement:
    """The expert of each slot. Slots are numbered rank by rank: slot s is on rank s // slots_per_rank.

    ValueError if an expert has no copy, or two on one rank.
    """

    experts: IntArray  # [layers, ranks, slots per rank]
    num_experts: int

    def __post_init__(self) -> None:
        if self.experts.ndim != 3 or self.experts.min() < 0 or self.experts.max() >= self.num_experts:
            raise ValueError(f"a placement is [layers, ranks, slots] of experts 0..{self.num_experts - 1}")
        copies_on_rank = np.sort(self.experts, axis=2)
        if (copies_on_rank[..., 1:] == copies_on_rank[..., :-1]).any():
            raise ValueError("a rank holds two copies of one expert")
        if not self.copies.all():
            layer, expert = np.argwhere(self.copies == 0)[0]
            raise ValueError(f"expert {expert} of layer {layer} is on no rank")

    @property
    def layers(self) -> int:
        return int(self.experts.shape[0])

    @property
    def ranks(self) -> int:
        return int(self.experts.shape[1])

    @property
    def slots_per_rank(self) -> int:
        return int(self.experts.shape[2])

    @cached_property
    def copies(self) -> IntArray:
        """Number of copies of each expert, [layers, experts]."""
        return count_members(self.experts.reshape(self.layers, self.ranks * self.slots_per_rank), self.num_experts)

    @cached_property
    def slots(self) -> IntArray:
        """The slots of each expert's copies, ascending, [layers, experts, most copies], padded with the first."""
        held = self.experts.reshape(self.layers, self.ranks * self.slots_per_rank)
        by_expert = np.argsort(held, axis=1, kind="stable")  # [layers, slots]
        firsts = np.cumsum(self.copies, axis=1) - self.copies  # [layers, experts]
        number = np.arange(self.copies.max())
        places = firsts[..., None] + np.where(number < self.copies[..., None], number, 0)
        return np.take_along_axis(by_expert, places.reshape(self.layers, -1), axis=1).reshape(places.shape)

    def route(self, layer: int, experts: IntArray, positions: IntArray) -> IntArray:
        """The slot of each (token, expert): the copy is chosen by the token's absolute position, round robin.

        `experts` [tokens, chosen] and `positions` [tokens] give slots [tokens, chosen]. The result depends on the
        token alone, not on the other tokens of the round.
        """
        turn = positions[:, None] % self.copies[layer][experts]
        slots: IntArray = self.slots[layer][experts, turn]
        return slots

    def held(self) -> BoolArray:
        """Whether a rank holds an expert, [layers, ranks, experts]."""
        holds = np.zeros((self.layers, self.ranks, self.num_experts), dtype=np.bool_)
        np.put_along_axis(holds, self.experts, True, axis=2)
        return holds

    def moves_from(self, before: "ExpertPlacement") -> int:
        """How many experts ranks must load to change from `before` to this placement."""
        return int((self.held() & ~before.held()).sum())


def count_members(values: IntArray, kinds: int) -> IntArray:
    """How often each of 0..kinds-1 occurs in each row of `values` [rows, n]: [rows, kinds]."""
    rows = len(values)
    shifted = values + kinds * np.arange(rows)[:, None]
    return np.bincount(shifted.ravel(), minlength=rows * kinds).reshape(rows, kinds)


def round_robin_table(num_experts: int, slots: int, ranks: int, parts: int = 1) -> IntArray:
    """The initial experts of one layer's slots, [ranks, slots per rank]: by id, repeated while there are slots.

    `ranks` must divide `slots`. Each of `parts` nodes does so with its own share of the experts.
    """
    own = num_experts // parts
    within = np.arange(slots // parts) % own
    return (np.arange(parts)[:, None] * own + within).reshape(ranks, -1)
