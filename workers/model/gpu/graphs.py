"""Runs small rounds as CUDA graphs, so that the host launches once per round.

There is one graph per number of rows (SIZES) and of KV splits (a power of two), captured after its first use. A round
is padded to the graph's size with rows that attend to nothing and write nothing, and copied into its static inputs.
Rounds with more rows run eagerly, with the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from outrider.kernels.gpu.language import power_of_two
from outrider.kernels.gpu.mla import SPLIT
from outrider.workers.model.gpu.batch import SIZES, GpuBatch, LaunchRows, packed, padded_size
from outrider.workers.model.gpu.upload import Upload
from outrider.workers.model.rows import IntArray, Rows

_NAMES = ("token_ids", "positions", "slots", "seen", "tiles", "pages")

T = TypeVar("T")
Run = Callable[[], T]
Forward = Callable[[GpuBatch, Tensor | None], Tensor]


class Captured(Generic[T]):
    """Runs a function of static inputs: eagerly the first time, which compiles its kernels, then as a CUDA graph.

    Every call runs it exactly once, so ranks that exchange rows need not capture at the same time.
    """

    def __init__(self, run: Run[T]) -> None:
        self._run, self._graph = run, torch.cuda.CUDAGraph()
        self._out: T | None = None  # of the graph; None: not captured yet

    def __call__(self) -> T:
        if self._out is not None:
            self._graph.replay()
            return self._out
        out = self._run()
        # The watchdog's thread may query events meanwhile, which would end a capture in the default mode.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._out = self._run()
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A size that batches are padded to: rows (and as many sequences), and splits of the KV cache."""

    rows: int
    splits: int
    block_size: int

    @classmethod
    def of(cls, batches: Sequence[Rows], block_size: int) -> "Bucket":
        """The smallest bucket for each of them. With several data groups, all of these have as many rows."""
        slots = max(int(each.cache_positions.max(initial=0)) + 1 for each in batches)
        return cls(
            rows=padded_size(max(map(_most_rows, batches))),
            splits=power_of_two(-(-slots // SPLIT)),
            block_size=block_size,
        )

    @staticmethod
    def holds(rows: Rows) -> bool:
        """Whether there is a bucket for them."""
        return 0 < _most_rows(rows) <= SIZES[-1]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        size, pages = self.rows, -(-self.splits * SPLIT // self.block_size)
        return (size,), (size,), (size,), (size, 2), (size, 3), (size, pages)

    @property
    def ints(self) -> int:
        """Integers of a batch."""
        return sum(map(prod, self.shapes))

    def batch(self, inputs: Tensor) -> GpuBatch:
        """The batch whose tensors are views of `inputs`, int32 [ints]."""
        parts = torch.split(inputs, [prod(shape) for shape in self.shapes])
        views = {name: part.view(shape) for name, part, shape in zip(_NAMES, parts, self.shapes, strict=True)}
        whole = LaunchRows(slice(0, self.rows), slice(0, self.rows))
        return GpuBatch(**views, pieces=(whole,), splits=self.splits, most_rows=self.rows)

    def pack(self, rows: Rows) -> list[IntArray]:
        """The padded batch's integers, in the order of `batch`."""
        return packed(rows, self.block_size, self.rows, self.shapes[-1][1])

    def static(self, device: torch.device, batches: int = 1) -> Tensor:
        """Inputs of batches of padding, int32 [batches, ints]."""
        inputs = torch.zeros(batches, self.ints, dtype=torch.int32, device=device)
        inputs[:, 2 * self.rows : 3 * self.rows] = -1  # slots
        return inputs


def _most_rows(rows: Rows) -> int:
    return len(rows) if rows.most_rows is None else rows.most_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """One captured bucket and its static inputs."""

    inputs: Tensor
    hidden: Tensor | None
    run: Run[Tensor]


class Graphs:
    """The graphs of one stage. `forward` is what they capture."""

    def __init__(
        self, forward: Forward, block_size: int, hidden_size: int | None, dtype: torch.dtype, device: torch.device,
        upload: Upload,
    ) -> None:  # fmt: skip
        """`hidden_size`: of the states that come in; None on a stage that embeds token ids."""
        self._forward, self._block_size, self._hidden_size = forward, block_size, hidden_size
        self._dtype, self._device, self._upload = dtype, device, upload
        self._graphs: dict[Bucket, _Graph] = {}

    def fits(self, rows: Rows) -> bool:
        return Bucket.holds(rows)

    def run(self, rows: Rows, hidden: Tensor | None) -> Tensor:
        """Like `forward`. The result is a copy: the drafter uses states after the next round has replaced them."""
        bucket = Bucket.of([rows], self._block_size)
        graph = self._graphs.get(bucket)
        if graph is None:
            graph = self._graphs[bucket] = self._make(bucket)
        graph.inputs.copy_(self._upload(bucket.pack(rows)))
        if graph.hidden is not None and hidden is not None:
            graph.hidden[: len(rows)].copy_(hidden)
        return graph.run()[: len(rows)].clone()

    def _make(self, bucket: Bucket) -> _Graph:
        inputs, hidden = bucket.static(self._device)[0], None
        batch = bucket.batch(inputs)
        if self._hidden_size is not None:
            hidden = torch.zeros(bucket.rows, self._hidden_size, dtype=self._dtype, device=self._device)
        return _Graph(inputs=inputs, hidden=hidden, run=Captured(lambda: self._forward(batch, hidden)))
