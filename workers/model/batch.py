"""One Round as tensors: everything that layers and attention need, computed once and used by every layer.

Attention reads the cache in chunks of CHUNK slots at fixed positions of the sequence. Its tables consist of such
chunks, gathered page by page (a page is the greatest common divisor of a block and a chunk). Sequences of similar
length attend together as one Group, a rectangle of sequences x rows x chunks. A long prompt chunk is split into Groups
of its own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outrider.workers.model.rows import IntArray, Rows

CHUNK = 64  # cache slots that one attention item covers
MIN_CHUNKS = 2  # a product of one item may use another order of sums than one of several
SHORT_ROWS = 16  # a sequence with more query rows gets Groups of its own
ALIGNED_SLOTS = 16  # this many slots are a multiple of 64 bytes, for any slot size
TILE_ROWS = 256  # rows of one sequence in a Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """S sequences x n rows x C chunks. Shorter sequences are padded with masked rows and chunks."""

    sequences: int
    rows: int  # n, per sequence
    chunks: int  # C, per sequence
    row_ids: Tensor | None  # [n*S] rows of the batch, row-major; None: all rows of the batch in order
    pages: Tensor  # [S*C*pages_per_chunk]
    first_page: int | None  # set: the pages are consecutive from here, so the cache can be read in place
    bias: Tensor  # [n, S, C, 1, CHUNK] float32: 0 where the row sees the slot, else -inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """R rows (query tokens) of S sequences, in the Round's order. Positions are slots of a sequence's own cache.

    Layers write the cache slots of all rows, and continue with the rows whose states are wanted: all, or W of them.
    """

    token_ids: Tensor  # [R] int64
    rope_positions: Tensor  # [R] int64
    write_rows: Tensor | None  # [W] rows that write the cache; None: all
    write_slots: Tensor  # [W] where they write: slot numbers of the whole cache
    wanted: Tensor | None  # [W] rows whose states are needed, ascending; None: all
    groups: tuple[Group, ...]  # of the wanted rows
    page_size: int

    @property
    def rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def wanted_rows(self) -> int:
        return self.rows if self.wanted is None else len(self.wanted)

    @classmethod
    def of(
        cls, rows: Rows, block_size: int, device: torch.device | str = "cpu", wanted: IntArray | None = None
    ) -> "Batch":
        """`wanted`: the rows whose states are needed; None: all."""
        device = torch.device(device)
        sequence_of_row = np.repeat(np.arange(len(rows.write_from)), np.diff(rows.query_offsets))
        positions = rows.cache_positions
        blocks = rows.block_ids[rows.block_offsets[sequence_of_row] + positions // block_size]
        slots = blocks * block_size + positions % block_size
        writes = np.flatnonzero(positions >= rows.write_from[sequence_of_row])
        page_size = math.gcd(block_size, CHUNK)
        going_on = rows if wanted is None else rows.alone(wanted)
        tables = _Tables(going_on, block_size, page_size)
        spans = _rectangles(going_on.query_offsets, going_on.cache_positions)
        return cls(
            token_ids=torch.from_numpy(rows.token_ids).to(device),
            rope_positions=torch.from_numpy(rows.rope_positions).to(device),
            write_rows=None if len(writes) == len(rows) else torch.from_numpy(writes).to(device),
            write_slots=torch.from_numpy(slots[writes]).to(device),
            wanted=None if wanted is None else torch.from_numpy(wanted).to(device),
            groups=tuple(tables.group(each, device) for each in spans),
            page_size=page_size,
        )

    def of_wanted(self, values: Tensor) -> Tensor:
        """The wanted rows [W, ...] of `values` [R, ...]."""
        return values if self.wanted is None else values.index_select(0, self.wanted)


Span = tuple[int, int, int]  # sequence, its first row, its end row


def _rectangles(query_offsets: IntArray, cache_positions: IntArray) -> Iterator[list[Span]]:
    """Sequences that attend together: few rows each, and numbers of chunks within a factor of two."""
    alike: dict[int, list[Span]] = {}
    for sequence, (first, end) in enumerate(zip(query_offsets[:-1].tolist(), query_offsets[1:].tolist(), strict=True)):
        if end - first > SHORT_ROWS:
            for start in range(first, end, TILE_ROWS):
                yield [(sequence, start, min(start + TILE_ROWS, end))]
        elif end > first:
            chunks = int(cache_positions[end - 1]) // CHUNK + 1
            alike.setdefault(max(chunks, MIN_CHUNKS).bit_length(), []).append((sequence, first, end))
    yield from alike.values()


@dataclass(frozen=True, slots=True)
class _Tables:
    """Builds Groups."""

    rows: Rows
    block_size: int
    page_size: int

    def group(self, spans: list[Span], device: torch.device) -> Group:
        positions = self.rows.cache_positions
        rows = max(end - first for _, first, end in spans)
        last = max(int(positions[end - 1]) for _, _, end in spans)
        chunks = max(last // CHUNK + 1, MIN_CHUNKS)
        row_ids = np.stack([np.minimum(np.arange(first, first + rows), end - 1) for _, first, end in spans], axis=1)
        pages = np.stack([self._pages(sequence, chunks) for sequence, _, _ in spans])
        slots = np.arange(chunks * CHUNK)
        last_seen = positions[row_ids][..., None]
        first_seen = self.rows.first_slots[[sequence for sequence, _, _ in spans]][:, None]
        seen = (slots >= first_seen) & (slots <= last_seen)  # [n, S, C*CHUNK]
        bias = np.where(seen, np.float32(0), np.float32(-np.inf)).reshape(rows, len(spans), chunks, 1, CHUNK)
        whole = row_ids.size == len(self.rows) and np.array_equal(row_ids.ravel(), np.arange(len(self.rows)))
        return Group(
            sequences=len(spans),
            rows=rows,
            chunks=chunks,
            row_ids=None if whole else torch.from_numpy(row_ids.ravel()).to(device),
            pages=torch.from_numpy(pages.ravel()).to(device),
            first_page=self._run(pages[0][: last // self.page_size + 1]) if len(spans) == 1 else None,
            bias=torch.from_numpy(bias).to(device),
        )

    def _pages(self, sequence: int, chunks: int) -> IntArray:
        """The pages of a sequence's first `chunks` chunks. Beyond its blocks it is page 0, which is masked."""
        table = slice(self.rows.block_offsets[sequence], self.rows.block_offsets[sequence + 1])
        blocks = self.rows.block_ids[table]
        per_block = self.block_size // self.page_size
        pages = (blocks[:, None] * per_block + np.arange(per_block)).ravel()
        wanted = chunks * (CHUNK // self.page_size)
        return np.pad(pages[:wanted], (0, max(wanted - len(pages), 0)))

    def _run(self, pages: IntArray) -> int | None:
        """The first of `pages` if they are consecutive and as aligned as a copy would be; else None."""
        aligned = self.page_size % ALIGNED_SLOTS == 0
        return int(pages[0]) if aligned and bool((np.diff(pages) == 1).all()) else None
