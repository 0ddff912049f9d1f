"""Which slot holds which expert of a layer, with whole experts spread over ranks."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from outrider.workers.experts.placement import ExpertPlacement, IntArray
from outrider.workers.parallel.shard import Shard

Held = TypeVar("Held")  # one expert's weights, or where they are


class SpreadExperts(Generic[Held]):
    """Implements ExpertLayer. Its tensors keep their addresses, which CUDA graphs have captured."""

    def __init__(
        self,
        number: int,
        shard: Shard,
        count: int,
        load: Callable[[int], Held],
        use: Callable[[Mapping[int, Held]], None],
        device: torch.device,
        held: Mapping[int, Held] | None = None,
    ) -> None:
        """`load` reads one of `count` experts; `use` gets this rank's, by slot. `held`: those read already."""
        self.number = number
        self._own = shard.slots(count)
        self._load, self._use = load, use
        self._held = dict(held or {})  # by expert
        most_copies = min(shard.redundant + 1, shard.datas * shard.tensors)
        self._slots = torch.zeros(count, most_copies, dtype=torch.int32, device=device)
        self._copies = torch.ones(count, dtype=torch.int64, device=device)
        self._loads = torch.zeros(count, dtype=torch.int64, device=device)
        self._one = torch.ones((), dtype=torch.int64, device=device)
        self.prepare(shard.first_table(count))()

    def route(self, ids: Tensor, positions: Tensor, counted: Tensor | None = None) -> Tensor:
        """Counts the choices `ids` [R, k] of rows at `positions` [R], and returns the slot of each, int32 [R, k].

        An expert's copies are chosen round robin by the row's position, so that the slot depends on the row alone.
        `counted` [R] is 0 for padding, which is not counted, and 1 for other rows.
        """
        ids = ids.long()
        ones = self._one if counted is None else counted.long().unsqueeze(1)
        self._loads.index_add_(0, ids.flatten(), ones.expand(ids.shape).flatten())
        return self._slots[ids, positions.unsqueeze(1) % self._copies[ids]]

    def take_loads(self) -> IntArray:
        taken: IntArray = self._loads.cpu().numpy().copy()
        self._loads.zero_()
        return taken

    def prepare(self, table: IntArray) -> Callable[[], None]:
        placement = ExpertPlacement(table[None], len(self._loads))
        own = table.ravel()[self._own.start : self._own.stop].tolist()
        held = {expert: self._held[expert] if expert in self._held else self._load(expert) for expert in own}
        by_slot = {slot: held[expert] for slot, expert in zip(self._own, own, strict=True)}
        found, width = placement.slots[0], self._slots.shape[1]
        padded = np.concatenate([found, found[:, :1].repeat(width - found.shape[1], axis=1)], axis=1)
        device = self._slots.device
        slots, copies = torch.from_numpy(padded).int().to(device), torch.from_numpy(placement.copies[0]).to(device)

        def switch() -> None:
            self._held = held
            self._slots.copy_(slots)
            self._copies.copy_(copies)
            self._use(by_slot)

        return switch
