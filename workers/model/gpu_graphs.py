"""Rounds of few rows as CUDA graphs: one launch by the host, whatever a round consists of.

A graph is of so many rows and splits of context, and has inputs of its own that a round is copied into, filled up with
rows that see and write nothing. There are SIZES of rows by powers of two of context; each is captured when it is first
met. Rounds of more rows run kernel by kernel, with the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.gpu.language import power_of_two
from outrider.kernels.gpu.mla import SPLIT
from outrider.workers.model.gpu_batch import GpuBatch, Piece, packed
from outrider.workers.model.rows import Rows

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)  # rows

Run = Callable[[], Tensor]
Forward = Callable[[GpuBatch, Tensor | None], Tensor]


def capture(run: Run) -> Run:
    """What replays `run`, whose inputs and outputs stay where they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # compiles kernels and fills allocators, which a capture cannot
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """One size's."""

    batch: GpuBatch
    inputs: Tensor  # int32: all that the batch's tensors are views of
    hidden: Tensor | None
    run: Run


class Graphs:
    """Those of one stage or module. `forward` runs it."""

    def __init__(
        self, forward: Forward, block_size: int, hidden_size: int | None, dtype: torch.dtype, device: torch.device,
        capture: Callable[[Run], Run] = capture,
    ) -> None:  # fmt: skip
        """`hidden_size`: None where the rows have no states before."""
        self._forward, self._block_size, self._hidden_size = forward, block_size, hidden_size
        self._dtype, self._device, self._capture = dtype, device, capture
        self._graphs: dict[tuple[int, int], _Graph] = {}

    def fits(self, rows: Rows) -> bool:
        return 0 < len(rows) <= SIZES[-1]

    def run(self, rows: Rows, hidden: Tensor | None) -> Tensor:
        """As `forward` of the rows, in memory of its own: pairs that wait for the drafter outlive the next round."""
        size = next(size for size in SIZES if size >= len(rows))
        splits = power_of_two(-(-(int(rows.cache_positions.max()) + 1) // SPLIT))
        graph = self._graphs.get((size, splits))
        if graph is None:
            graph = self._graphs[size, splits] = self._make(size, splits)
        pages = graph.batch.pages.shape[1]
        flat = torch.from_numpy(np.concatenate(packed(rows, self._block_size, size, pages)).astype(np.int32))
        graph.inputs.copy_(flat, non_blocking=True)
        if graph.hidden is not None and hidden is not None:
            graph.hidden[: len(rows)].copy_(hidden)
        return graph.run()[: len(rows)].clone()

    def _make(self, size: int, splits: int) -> _Graph:
        pages = -(-splits * SPLIT // self._block_size)
        shapes = ((size,), (size,), (size,), (size, 2), (size, 3), (size, pages))
        counts = [int(np.prod(shape)) for shape in shapes]
        inputs = torch.zeros(sum(counts), dtype=torch.int32, device=self._device)
        parts = [part.view(shape) for part, shape in zip(torch.split(inputs, counts), shapes, strict=True)]
        parts[2].fill_(-1)
        names = ("token_ids", "positions", "slots", "seen", "tiles", "pages")
        everything = Piece(slice(0, size), slice(0, size))
        batch = GpuBatch(**dict(zip(names, parts, strict=True)), pieces=(everything,), splits=splits)
        hidden = None
        if self._hidden_size is not None:
            hidden = torch.zeros(size, self._hidden_size, dtype=self._dtype, device=self._device)
        run = self._capture(lambda: self._forward(batch, hidden))
        return _Graph(batch=batch, inputs=inputs, hidden=hidden, run=run)
