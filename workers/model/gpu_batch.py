"""One Round as GPU kernels take it: integers only, in one buffer, so that they come to the device in one copy.

Which row sees what is told by two numbers a row, and where a sequence's slots lie by its table of blocks: nothing here
grows with rows times context, and no kernel's launches depend on either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.gpu.language import power_of_two
from outrider.kernels.gpu.mla import QUERIES, SPLIT
from outrider.workers.model.rows import IntArray, Rows
from outrider.workers.types.round import ints

PARTS_BYTES = 256 << 20  # of what attention's splits leave: rows go in pieces of no more


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that attend in one launch, and their tiles, whose rows count from the piece's first."""

    rows: slice
    tiles: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBatch:
    """R rows of S sequences. Tensors are int32 on the device."""

    token_ids: Tensor  # [R]
    positions: Tensor  # [R] that keys and queries are turned by
    slots: Tensor  # [R] of the whole cache, that the row writes; -1: none
    seen: Tensor  # [R, 2] the first slot, of its sequence's own, that the row sees, and one past the last
    tiles: Tensor  # [T, 3] sequence, first row, rows
    pages: Tensor  # [S, P] each sequence's blocks
    pieces: tuple[Piece, ...]
    splits: int  # of the cache, that the longest sequence has or more
    wanted: Tensor | None = None  # [W] rows whose states are asked for; None: all

    @property
    def rows(self) -> int:
        return self.token_ids.shape[0]


def batches_of(
    rounds: Sequence[Rows],
    block_size: int,
    device: torch.device,
    row_bytes: int,
    wanted: IntArray | None = None,
) -> list[GpuBatch]:
    """Of each, all in one copy. `row_bytes`: what one row leaves in one split; `wanted`: rows of each."""
    arrays, shapes = list[IntArray](), list[tuple[tuple[Piece, ...], int]]()
    for rows in rounds:
        splits = power_of_two(-(-(int(rows.cache_positions.max(initial=0)) + 1) // SPLIT))
        tiles, pieces = _tiles(rows.query_offsets, max(QUERIES, PARTS_BYTES // (row_bytes * splits)))
        arrays += [rows.token_ids, rows.rope_positions, _slots(rows, block_size), _seen(rows), tiles, _pages(rows)]
        arrays += [ints() if wanted is None else wanted]
        shapes.append((pieces, splits))
    if not arrays:
        return []
    flat = torch.from_numpy(np.concatenate([each.ravel() for each in arrays]).astype(np.int32))
    parts = torch.split(flat.to(device, non_blocking=True), [each.size for each in arrays])
    views = [part.view(each.shape) for part, each in zip(parts, arrays, strict=True)]
    names = ("token_ids", "positions", "slots", "seen", "tiles", "pages", "wanted")
    found = []
    for number, (pieces, splits) in enumerate(shapes):
        own = dict(zip(names, views[number * len(names) : (number + 1) * len(names)], strict=True))
        if wanted is None:
            del own["wanted"]
        found.append(GpuBatch(**own, pieces=pieces, splits=splits))
    return found


def packed(rows: Rows, block_size: int, size: int, pages: int) -> list[IntArray]:
    """The arrays of a batch of `size` rows and as many sequences and tiles, in its order, flat.

    Rows beyond the round's own see and write nothing.
    """
    tiles, _ = _tiles(rows.query_offsets, size)
    own = _pages(rows)[:, :pages]
    filled = np.zeros((size, pages), dtype=np.int64)
    filled[: len(own), : own.shape[1]] = own
    arrays = (rows.token_ids, rows.rope_positions, _slots(rows, block_size), _seen(rows), tiles)
    ends = (0, 0, -1, 0, 0)
    return [*(_filled_up(each, size, end) for each, end in zip(arrays, ends, strict=True)), filled.ravel()]


def _filled_up(array: IntArray, size: int, value: int) -> IntArray:
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
    """Each sequence's blocks, filled up with block 0, which none of its rows sees."""
    counts = np.diff(rows.block_offsets)
    out = np.zeros((len(counts), int(counts.max(initial=1))), dtype=np.int64)
    for sequence, count in enumerate(counts.tolist()):
        first = rows.block_offsets[sequence]
        out[sequence, :count] = rows.block_ids[first : first + count]
    return out


def _tiles(query_offsets: IntArray, most: int) -> tuple[IntArray, tuple[Piece, ...]]:
    """Tiles of up to QUERIES rows of one sequence, and pieces of up to `most` rows."""
    tiles, pieces, first_row, first_tile = list[tuple[int, int, int]](), list[Piece](), 0, 0
    borders = query_offsets.tolist()
    for sequence, (begin, end) in enumerate(pairwise(borders)):
        for row in range(begin, end, QUERIES):
            count = min(QUERIES, end - row)
            if row + count - first_row > most:
                pieces.append(Piece(slice(first_row, row), slice(first_tile, len(tiles))))
                first_row, first_tile = row, len(tiles)
            tiles.append((sequence, row - first_row, count))
    pieces.append(Piece(slice(first_row, borders[-1]), slice(first_tile, len(tiles))))
    return np.array(tiles, dtype=np.int64).reshape(-1, 3), tuple(pieces)
