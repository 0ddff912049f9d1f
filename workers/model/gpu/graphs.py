"""Runs small rounds as CUDA graphs, so that the host launches once per round.

There is one graph per number of rows (SIZES) and of KV splits (a power of two), captured at its first use. A round is
padded to the graph's size with rows that attend to nothing and write nothing, and copied into its static inputs.
Rounds with more rows run eagerly, with the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from outrider.kernels.gpu.language import power_of_two
from outrider.kernels.gpu.mla import SPLIT
from outrider.workers.model.gpu.batch import GpuBatch, LaunchRows, packed
from outrider.workers.model.gpu.upload import Upload
from outrider.workers.model.rows import IntArray, Rows

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)  # rows
_NAMES = ("token_ids", "positions", "slots", "seen", "tiles", "pages")

T = TypeVar("T")
Run = Callable[[], T]
Capture = Callable[[Run[T]], Run[T]]
Forward = Callable[[GpuBatch, Tensor | None], Tensor]


def capture(run: Run[T]) -> Run[T]:
    """Captures `run`, and returns what replays it. Inputs and outputs keep their addresses."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # compiles kernels, which is not possible during capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The watchdog's thread may query events meanwhile, which would end a capture in the default mode.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = run()

    def replay() -> T:
        graph.replay()
        return out

    return replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A size that batches are padded to: rows (and as many sequences), and splits of the KV cache."""

    rows: int
    splits: int
    block_size: int

    @classmethod
    def of(cls, batches: Sequence[Rows], block_size: int) -> "Bucket":
        """The smallest bucket for each of them; with several data groups, for all of these."""
        largest = [each.largest for each in batches if each.largest is not None]
        rows = max([*map(len, batches), *(each.rows for each in largest)])
        slots = max(
            [*(int(each.cache_positions.max(initial=0)) + 1 for each in batches), *(each.slots for each in largest)]
        )
        return cls(
            rows=next(size for size in SIZES if size >= rows),
            splits=power_of_two(-(-slots // SPLIT)),
            block_size=block_size,
        )

    @staticmethod
    def holds(rows: Rows) -> bool:
        """Whether there is a bucket for them."""
        return 0 < (len(rows) if rows.largest is None else rows.largest.rows) <= SIZES[-1]

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
        upload: Upload, capture: Capture[Tensor] = capture,
    ) -> None:  # fmt: skip
        """`hidden_size`: of the states that come in; None on a stage that embeds token ids."""
        self._forward, self._block_size, self._hidden_size = forward, block_size, hidden_size
        self._dtype, self._device, self._capture = dtype, device, capture
        self._upload = upload
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
        return _Graph(inputs=inputs, hidden=hidden, run=self._capture(lambda: self._forward(batch, hidden)))
