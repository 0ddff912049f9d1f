"""A group for the compiled kernels: shared memory is used directly, other transports through Python callbacks."""

import ctypes
import logging
from typing import Any

import torch
from torch import Tensor

from outrider.kernels.cpu.context import ExchangeError
from outrider.kernels.cpu.library import EXCHANGE, GATHER, PURPOSES, GroupStruct
from outrider.kernels.cpu.shared_group import BrokenGroupError
from outrider.workers.parallel.collectives.collectives import Collectives, ExchangeBrokenError
from outrider.workers.parallel.collectives.shared_collectives import SharedCollectives

log = logging.getLogger("outrider.links")
_FAILED = 1


class NativeGroup:
    """Owns the callbacks. `structure` is valid while this object exists and the group is open."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._error: ExchangeBrokenError | None = None
        if isinstance(collectives, SharedCollectives):
            self.structure = collectives.group.structure
        else:
            self.structure = GroupStruct(
                rank=collectives.rank,
                size=collectives.size,
                gather=GATHER(self._gather),
                exchange=EXCHANGE(self._exchange),
            )

    def explain(self, failure: ExchangeError) -> ExchangeBrokenError:
        """The error to raise for a failed call of the kernels."""
        if self._error is not None:
            return self._error
        assert isinstance(self._collectives, SharedCollectives), "callbacks record their error"
        return self._collectives.lost(BrokenGroupError(failure.code), PURPOSES[failure.purpose])

    def _gather(self, state: Any, purpose: int, mine: int, size: int, root: int, out: int) -> int:
        try:
            whole = self._collectives.gather(_bytes_at(mine, size), PURPOSES[purpose], None if root < 0 else root)
            if whole.shape[0]:
                _bytes_at(out, size * self.structure.size).copy_(whole.view(-1))
        except ExchangeBrokenError as error:
            return self._failed(error)
        return 0

    def _exchange(self, state: Any, purpose: int, sent: int, sent_sizes: Any, out: int, received_sizes: Any) -> int:
        size = self.structure.size
        here, there = list(sent_sizes[:size]), list(received_sizes[:size])
        try:
            received = self._collectives.exchange(_bytes_at(sent, sum(here)), here, there, PURPOSES[purpose])
            _bytes_at(out, sum(there)).copy_(received)
        except ExchangeBrokenError as error:
            return self._failed(error)
        return 0

    def _failed(self, error: ExchangeBrokenError) -> int:
        self._error = error
        return _FAILED


def _bytes_at(address: int | None, size: int) -> Tensor:
    """The memory itself as uint8 [size], not a copy."""
    if not size or address is None:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)
