"""Runs small rounds as CUDA graphs, so that the host launches once per round.

There is one graph per number of rows (SIZES) and number of KV splits (a power of two), captured at its first use. A
round is padded to the graph's size with rows that attend to nothing and write nothing, and copied into its static
inputs. Rounds with more rows run eagerly, with the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.gpu.language import power_of_two
from outrider.kernels.gpu.mla import SPLIT
from outrider.workers.model.gpu_batch import GpuBatch, Piece, packed
from outrider.workers.model.gpu_upload import Upload
from outrider.workers.model.rows import Rows

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)  # rows

Run = Callable[[], Tensor]
Forward = Callable[[GpuBatch, Tensor | None], Tensor]


def capture(run: Run) -> Run:
    """Captures `run`, and returns what replays it. Inputs and outputs keep their addresses."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # compiles kernels, which is not possible during capture
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
    """One captured size and its static inputs."""

    batch: GpuBatch
    inputs: Tensor  # int32: the batch's tensors are views of it
    hidden: Tensor | None
    run: Run


class Graphs:
    """The graphs of one stage. `forward` is what they capture."""

    def __init__(
        self, forward: Forward, block_size: int, hidden_size: int | None, dtype: torch.dtype, device: torch.device,
        upload: Upload, embed: Callable[[Tensor], Tensor] | None = None, capture: Callable[[Run], Run] = capture,
    ) -> None:  # fmt: skip
        """`hidden_size`: of the states that come in; None if graphs embed the token ids themselves.

        `embed` makes these states from token ids, outside the graphs, where a round comes without states.
        """
        self._forward, self._block_size, self._hidden_size = forward, block_size, hidden_size
        self._dtype, self._device, self._capture = dtype, device, capture
        self._upload, self._embed = upload, embed
        self._graphs: dict[tuple[int, int], _Graph] = {}

    def fits(self, rows: Rows) -> bool:
        return 0 < len(rows) <= SIZES[-1]

    def run(self, rows: Rows, hidden: Tensor | None) -> Tensor:
        """Like `forward`. The result is a copy: the drafter uses states after the next round has replaced them."""
        size = next(size for size in SIZES if size >= len(rows))
        splits = power_of_two(-(-(int(rows.cache_positions.max()) + 1) // SPLIT))
        graph = self._graphs.get((size, splits))
        if graph is None:
            graph = self._graphs[size, splits] = self._make(size, splits)
        pages = graph.batch.pages.shape[1]
        inputs = self._upload(packed(rows, self._block_size, size, pages))
        graph.inputs.copy_(inputs)
        if hidden is None and self._embed is not None:
            hidden = self._embed(inputs[: len(rows)])  # token ids come first
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
        whole = Piece(slice(0, size), slice(0, size))
        batch = GpuBatch(**dict(zip(names, parts, strict=True)), pieces=(whole,), splits=splits)
        hidden = None
        if self._hidden_size is not None:
            hidden = torch.zeros(size, self._hidden_size, dtype=self._dtype, device=self._device)
        run = self._capture(lambda: self._forward(batch, hidden))
        return _Graph(batch=batch, inputs=inputs, hidden=hidden, run=run)
