"""Experts of one layer's stack that move between ranks while they serve (expert load balancing)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from outrider.workers.model.gpu.stack import Stack
from outrider.workers.model.spread_experts import SpreadExperts
from outrider.workers.parallel.shard import Shard


class _Expert:
    """An expert of this rank: its place in the stack, or its weights until it has one."""

    def __init__(self, place: int | None, coming: Stack | None = None) -> None:
        self.place, self.coming = place, coming


class MovingExperts:
    """Keeps the weights of the slots' experts in `stack`, in any order. `layer` decides which; it calls `_use`."""

    def __init__(self, number: int, shard: Shard, count: int, stack: Stack, load: Callable[[int], Stack]) -> None:
        """`stack` has the initial experts in the order of the slots. `load` reads one expert."""
        self._stack, self._own = stack, shard.slots(count)
        table, device = shard.first_table(count), stack.device
        # -1: on another rank, as is slot -1, for which the last entry stands
        self._places = torch.full((table.size + 1,), -1, dtype=torch.int32, device=device)
        first = table.ravel()[self._own.start : self._own.stop].tolist()
        self.layer = SpreadExperts(
            number, shard, count, lambda expert: _Expert(None, load(expert)), self._use, device,
            {expert: _Expert(place) for place, expert in enumerate(first)},
        )  # fmt: skip

    def places(self, slots: Tensor) -> Tensor:
        """The slots' places in the stack, or -1. Slot -1 has none."""
        return self._places[slots.long()]

    def _use(self, experts: Mapping[int, _Expert]) -> None:
        """Copies experts that came over those that left. The device runs this between two rounds."""
        free = set(range(len(self._own))) - {each.place for each in experts.values()}
        for expert in experts.values():
            if expert.coming is not None:
                expert.place = free.pop()
                self._stack.put(expert.place, expert.coming)
                expert.coming = None
        self._places[self._own.start : self._own.stop] = torch.tensor(
            [experts[slot].place for slot in self._own], dtype=torch.int32, device=self._places.device
        )
