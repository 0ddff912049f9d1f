"""Moves experts on a rank while it serves: executes the leader's commands between rounds (experts/orders.py).

A separate thread reads the new weights while rounds run, on a GPU over a stream of its own. Switching to them only
exchanges pointers, or copies them within the GPU's memory.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from outrider.workers.experts.layer import ExpertLayer
from outrider.workers.experts.orders import NOTHING, Order, State
from outrider.workers.experts.placement import IntArray
from outrider.workers.parallel.collectives.collectives import Collectives
from outrider.workers.parallel.shard import Shard

log = logging.getLogger("outrider.experts")
_FIRST = 0  # the rank that answers for its stage, in the round that it passes on
_PURPOSE = "expert loads"


class LongestSpan:
    """The longest of several timed spans."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds = max(self.seconds, time.perf_counter() - began)


class LiveExperts:
    """`layers`: this stage's expert-parallel layers, including the MTP module's."""

    def __init__(self, layers: Sequence[ExpertLayer], stage: Collectives, shard: Shard, device: torch.device) -> None:
        self.held_up = LongestSpan()  # delay of a round by a command
        self._layers = {layer.number: layer for layer in layers}
        self._stage, self._shard, self._device = stage, shard, device
        self._reader = ThreadPoolExecutor(1, "expert-reader")
        self._coming: Future[Callable[[], None]] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def apply(self, order: IntArray) -> IntArray:
        """Executes a command between two rounds. Returns the stage's answer on its first rank, else nothing."""
        if not len(order):
            return NOTHING
        with self.held_up.timing():
            match Order(int(order[0])):
                case Order.REPORT:
                    return self._report()
                case Order.PREPARE:
                    self._prepare(int(order[1]), order[2:].copy())
                case Order.ASK:
                    return self._state()
                case Order.SWITCH:
                    self._switch()
        return NOTHING

    def _report(self) -> IntArray:
        """Expert loads summed over data groups. Ranks of a tensor group have the same rows, so one of them counts."""
        if not self._layers:
            return NOTHING
        own = np.stack([np.append(number, layer.take_loads()) for number, layer in self._layers.items()])
        if self._shard.datas == 1:
            return own.ravel() if self._stage.rank == _FIRST else NOTHING
        every = self._gathered(own)
        if self._stage.rank != _FIRST:
            return NOTHING
        total = every[:: self._shard.tensors].sum(axis=0)
        total[:, 0] = own[:, 0]
        return np.asarray(total.ravel())

    def _prepare(self, number: int, table: IntArray) -> None:
        layer = self._layers.get(number)
        if layer is None:
            return
        if self._stream is not None:  # memory of experts that left may still be in use by the last round
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._coming = self._reader.submit(_read, layer, table.reshape(self._stage.size, -1), self._stream)

    def _state(self) -> IntArray:
        """The worst state of all ranks; nothing if this stage prepares no layer."""
        if self._coming is None:
            return NOTHING
        every = self._gathered(np.array([_state_of(self._coming)], dtype=np.int64))
        return np.array([every.max()]) if self._stage.rank == _FIRST else NOTHING

    def _switch(self) -> None:
        """Installs the prepared experts. The leader sends this command once all ranks are ready."""
        if self._coming is not None:
            self._coming.result()()
            self._coming = None

    def _gathered(self, part: IntArray) -> IntArray:
        """[ranks, ...] on the first rank, nothing on others."""
        every = self._stage.gather(torch.from_numpy(part).to(self._device), _PURPOSE, _FIRST)
        return np.asarray(every.cpu().numpy())


def _read(layer: ExpertLayer, table: IntArray, stream: "torch.cuda.Stream | None") -> Callable[[], None]:
    """Returns once the weights are in this rank's memory. `stream`: of the copies to a GPU."""
    try:
        if stream is None:
            return layer.prepare(table)
        with torch.cuda.stream(stream):
            switch = layer.prepare(table)
        stream.synchronize()
        return switch
    except Exception:
        log.exception("experts of layer %d could not be read; experts will not be moved any more", layer.number)
        raise


def _state_of(coming: Future[Callable[[], None]]) -> State:
    if not coming.done():
        return State.READING
    return State.READY if coming.exception() is None else State.FAILED
