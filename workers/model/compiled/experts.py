"""A layer's spread experts for the compiled kernels: which slot holds which expert. As spread_experts.py in torch."""

from collections.abc import Callable

import numpy as np

from outrider.kernels.cpu.library import LinearStruct, MlpStruct, RoutedExperts
from outrider.workers.experts.placement import ExpertPlacement, IntArray
from outrider.workers.parallel.shard import Shard


class CompiledExperts:
    """Implements ExpertLayer. `structure` is what the kernels read; it is valid while this object exists."""

    def __init__(
        self,
        number: int,
        shard: Shard,
        experts: int,
        width: int,
        load: Callable[[int], MlpStruct],
        free: Callable[[MlpStruct], None],
    ) -> None:
        """`load` reads an expert of inner width `width`; `free` releases its memory."""
        self.number = number
        self._own = shard.slots(experts)
        self._load, self._free = load, free
        self._elsewhere = MlpStruct(down=LinearStruct(inputs=width), width=width)  # for other ranks' slots: sizes only
        self._held: dict[int, MlpStruct] = {}  # by expert
        self._loads = np.zeros(experts, dtype=np.int64)
        self.structure = RoutedExperts(loads=self._loads.ctypes.data)
        self.prepare(shard.first_table(experts))()

    def take_loads(self) -> IntArray:
        taken = self._loads.copy()
        self._loads[:] = 0
        return taken

    def prepare(self, table: IntArray) -> Callable[[], None]:
        placement = ExpertPlacement(table[None], len(self._loads))
        experts = table.ravel()[self._own.start : self._own.stop].tolist()
        held = {expert: self._held.get(expert) or self._load(expert) for expert in experts}
        slots = (MlpStruct * table.size)(*[self._elsewhere] * table.size)
        for slot, expert in zip(self._own, experts, strict=True):
            slots[slot] = held[expert]
        copies, places = placement.copies[0].astype(np.int32), placement.slots[0].astype(np.int32)

        def switch() -> None:
            gone = [mlp for expert, mlp in self._held.items() if expert not in held]
            self._held, self._read = held, (slots, copies, places)
            self.structure.slots, self.structure.count = slots, len(slots)
            self.structure.copies, self.structure.slots_of_expert = copies.ctypes.data, places.ctypes.data
            self.structure.most_copies = places.shape[1]
            for mlp in gone:
                self._free(mlp)

        return switch
