"""A Round's integers for the GPU kernels, packed into one buffer, so that one copy brings them to the device.

Each row's visible slots are a range of two numbers, and each sequence's blocks a row of the block table. Nothing grows
with rows times context, and the number of kernel launches depends on neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.gpu.language import power_of_two
from outrider.kernels.gpu.mla import QUERIES, SPLIT
from outrider.workers.model.gpu.upload import Upload
from outrider.workers.model.rows import IntArray, Rows
from outrider.workers.types.rounds.round import ints

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)  # rows that small batches are padded to
PARTS_BYTES = 256 << 20  # limit for the splits' partial outputs of one attention launch


@dataclass(frozen=True, slots=True)
class LaunchRows:
    """Rows of one attention launch, and their tiles. A tile's first row is relative to the piece."""

    rows: slice
    tiles: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBatch:
    """R rows of S sequences. Tensors are int32 on the device."""

    token_ids: Tensor  # [R]
    positions: Tensor  # [R] for the rotary embedding
    slots: Tensor  # [R] the cache slot that the row writes; -1: none
    seen: Tensor  # [R, 2] the first slot of its sequence that the row attends to, and one past the last
    tiles: Tensor  # [T, 3] sequence, first row, number of rows
    pages: Tensor  # [S, P] each sequence's blocks
    pieces: tuple[LaunchRows, ...]
    splits: int  # of the KV cache: at least as many as the longest sequence has
    wanted: Tensor | None = None  # [W] rows whose states are needed; None: all
    most_rows: int = 0  # of all data groups' batches, padded; 0: not known

    @property
    def rows(self) -> int:
        return self.token_ids.shape[0]


def batches_of(
    rounds: Sequence[Rows],
    block_size: int,
    upload: Upload,
    row_bytes: int,
    wanted: Sequence[IntArray | None],
) -> list[GpuBatch]:
    """One batch per round, in one copy. `row_bytes`: one row's partial output in one split; `wanted` of each round."""
    arrays, shapes = list[IntArray](), list[tuple[tuple[LaunchRows, ...], int]]()
    for rows, states in zip(rounds, wanted, strict=True):
        splits = power_of_two(-(-(int(rows.cache_positions.max(initial=0)) + 1) // SPLIT))
        tiles, pieces = _tiles(rows.query_offsets, max(QUERIES, PARTS_BYTES // (row_bytes * splits)))
        arrays += [rows.token_ids, rows.rope_positions, _slots(rows, block_size), _seen(rows), tiles, _pages(rows)]
        arrays += [ints() if states is None else states]
        shapes.append((pieces, splits))
    if not arrays:
        return []
    parts = torch.split(upload(arrays), [each.size for each in arrays])
    views = [part.view(each.shape) for part, each in zip(parts, arrays, strict=True)]
    names = ("token_ids", "positions", "slots", "seen", "tiles", "pages", "wanted")
    found = []
    for number, (pieces, splits) in enumerate(shapes):
        own = dict(zip(names, views[number * len(names) : (number + 1) * len(names)], strict=True))
        if wanted[number] is None:
            del own["wanted"]
        most_rows = padded_size(rounds[number].most_rows or 0)
        found.append(GpuBatch(**own, pieces=pieces, splits=splits, most_rows=most_rows))
    return found


def padded_size(rows: int) -> int:
    """The smallest of SIZES that holds `rows`; `rows` if none does, or there are none."""
    return next((size for size in SIZES if size >= rows > 0), rows)


def packed(rows: Rows, block_size: int, size: int, pages: int) -> list[IntArray]:
    """The arrays of a batch padded to `size` rows, sequences and tiles, flattened, in GpuBatch's order.

    Padding rows attend to nothing and write nothing.
    """
    tiles, _ = _tiles(rows.query_offsets, size)
    own = _pages(rows)[:, :pages]
    table = np.zeros((size, pages), dtype=np.int64)
    table[: len(own), : own.shape[1]] = own
    arrays = (rows.token_ids, rows.rope_positions, _slots(rows, block_size), _seen(rows), tiles)
    padding = (0, 0, -1, 0, 0)
    return [*(_padded(each, size, value) for each, value in zip(arrays, padding, strict=True)), table.ravel()]


def _padded(array: IntArray, size: int, value: int) -> IntArray:
    """[n, ..] -> [size, ..], flat."""
    out = np.full((size, *array.shape[1:]), value, dtype=np.int64)
    out[: len(array)] = array
    return out.ravel()


def _owners(rows: Rows) -> IntArray:
    return np.repeat(np.arange(len(rows.write_from)), np.diff(rows.query_offsets))


def _slots(rows: Rows, block_size: int) -> IntArray:
    owners, positions = _owners(rows), rows.cache_positions
    blocks = rows.block_ids[rows.block_offsets[owners] + positions // block_size]
    writes = positions >= rows.write_from[owners]
    return np.where(writes, blocks * block_size + positions % block_size, -1)


def _seen(rows: Rows) -> IntArray:
    return np.stack([rows.first_slots[_owners(rows)], rows.cache_positions + 1], axis=1)


def _pages(rows: Rows) -> IntArray:
    """The block table, padded with block 0, which no row attends to."""
    counts = np.diff(rows.block_offsets)
    out = np.zeros((len(counts), int(counts.max(initial=1))), dtype=np.int64)
    for sequence, count in enumerate(counts.tolist()):
        first = rows.block_offsets[sequence]
        out[sequence, :count] = rows.block_ids[first : first + count]
    return out


def _tiles(query_offsets: IntArray, most: int) -> tuple[IntArray, tuple[LaunchRows, ...]]:
    """Tiles of up to QUERIES rows of one sequence, and pieces of up to `most` rows."""
    tiles, pieces, first_row, first_tile = list[tuple[int, int, int]](), list[LaunchRows](), 0, 0
    borders = query_offsets.tolist()
    for sequence, (begin, end) in enumerate(pairwise(borders)):
        for row in range(begin, end, QUERIES):
            count = min(QUERIES, end - row)
            if row + count - first_row > most:
                pieces.append(LaunchRows(slice(first_row, row), slice(first_tile, len(tiles))))
                first_row, first_tile = row, len(tiles)
            tiles.append((sequence, row - first_row, count))
    pieces.append(LaunchRows(slice(first_row, borders[-1]), slice(first_tile, len(tiles))))
    return np.array(tiles, dtype=np.int64).reshape(-1, 3), tuple(pieces)
