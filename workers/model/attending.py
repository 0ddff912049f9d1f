"""Attention of queries over the paged cache.

Every product is a batch of items of one fixed shape (HEAD_TILE queries of a row against CHUNK slots). Every sum over
chunks runs in the order of the chunks, in float32. So a row's bits do not depend on the other rows, the number of
rows, where its blocks are, or which rank has its heads.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from outrider.workers.model.batch import CHUNK, Batch, Group

HEAD_TILE = 4  # queries per item of a product with the cache

# A range of heads, and the keys and values [items, CHUNK, ..] that they attend to, from chunks of the cache [items,
# CHUNK, width].
HeadChunks = Iterator[tuple[slice, Tensor, Tensor]]


def attend(
    query: Tensor,
    cache: Tensor,
    batch: Batch,
    head_chunks: Callable[[Tensor], HeadChunks],
    head_tile: int | None = HEAD_TILE,
) -> Tensor:
    """`query` [R, heads, key] over `cache` [slots, width] -> [R, heads, value] in float32.

    `head_tile`: items with fewer queries are padded to this number; None: no padding.
    """
    parts = [_attend_group(query, cache, group, batch.page_size, head_chunks, head_tile) for group in batch.groups]
    if len(parts) == 1 and batch.groups[0].row_ids is None:
        return parts[0]
    out = query.new_empty(*query.shape[:2], parts[0].shape[-1])
    for group, gathered in zip(batch.groups, parts, strict=True):
        out.index_copy_(0, group.row_ids, gathered) if group.row_ids is not None else out.copy_(gathered)
    return out


def _attend_group(
    query: Tensor,
    cache: Tensor,
    group: Group,
    page_size: int,
    head_chunks: Callable[[Tensor], HeadChunks],
    head_tile: int | None,
) -> Tensor:
    rows = query.index_select(0, group.row_ids) if group.row_ids is not None else query
    parts = []
    for heads, keys, values in head_chunks(_chunks(cache, group, page_size)):
        own = rows[:, heads]
        padding = -own.shape[1] % head_tile if head_tile else 0
        tile = functional.pad(own, (0, 0, 0, padding)).contiguous()
        parts.append(_attend_rectangle(tile, keys, values, group)[:, : own.shape[1]])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend_rectangle(query: Tensor, keys: Tensor, values: Tensor, group: Group) -> Tensor:
    """Attention of one group. The softmax's maximum is taken over all chunks first, so no partial sum is rescaled."""
    sequences, rows, chunks = group.sequences, group.rows, group.chunks
    heads, width = query.shape[1:]
    query = query.view(rows, sequences, heads, width)
    by_chunk = sequences == 1 and rows > chunks
    scores = _scores_by_chunk(query[:, 0], keys) if by_chunk else _scores_by_row(query, keys, chunks)
    scores = scores.view(rows, sequences, chunks, heads, CHUNK).add_(group.bias)
    weights = scores.sub_(scores.amax(dim=(2, 4), keepdim=True)).exp_()
    total = weights.sum(dim=-1).cumsum(dim=2)[:, :, -1]  # [n, S, heads], summed in the order of the chunks
    gathered = _values_by_chunk(weights[:, 0], values) if by_chunk else _values_by_row(weights, values)
    return gathered.view(-1, heads, values.shape[2]).div_(total.view(-1, heads, 1))


def _chunks(cache: Tensor, group: Group, page_size: int) -> Tensor:
    """The group's chunks of the cache in float32 [S*C, CHUNK, width]; a view if they are contiguous and float32."""
    items = group.sequences * group.chunks
    if group.first_page is not None:
        start = group.first_page * page_size
        return cache[start : start + items * CHUNK].view(items, CHUNK, -1).float()
    slots = cache.shape[0] // page_size * page_size
    pages = cache[:slots].view(-1, page_size * cache.shape[1])
    return pages.index_select(0, group.pages).view(items, CHUNK, -1).float()


def _scores_by_row(query: Tensor, keys: Tensor, chunks: int) -> Tensor:
    """For each j, the j-th row of every sequence against all its chunks -> [n, S*C, heads, CHUNK]."""
    rows, sequences, heads, width = query.shape
    scores = query.new_empty(rows, sequences * chunks, heads, CHUNK)
    for row in range(rows):
        items = query[row].unsqueeze(1).expand(-1, chunks, -1, -1).reshape(-1, heads, width)
        torch.bmm(items, keys.transpose(1, 2), out=scores[row])
    return scores


def _values_by_row(weights: Tensor, values: Tensor) -> Tensor:
    """Values weighted by `weights` [n, S, C, heads, CHUNK], summed in chunk order -> [n, S, heads, values]."""
    rows, sequences, chunks, heads, _ = weights.shape
    out = weights.new_empty(rows, sequences, heads, values.shape[2])
    for row in range(rows):
        parts = torch.bmm(weights[row].flatten(0, 1), values).view(sequences, chunks, heads, -1)
        total = parts[:, 0]
        for chunk in range(1, chunks):
            total += parts[:, chunk]
        out[row] = total
    return out


def _scores_by_chunk(query: Tensor, keys: Tensor) -> Tensor:
    """One sequence's rows against its chunks, chunk by chunk -> [n, C, heads, CHUNK]."""
    rows, heads, _ = query.shape
    scores = query.new_empty(rows, keys.shape[0], heads, CHUNK)
    for chunk, key in enumerate(keys.transpose(1, 2)):
        scores[:, chunk] = torch.bmm(query, key.expand(rows, -1, -1))
    return scores


def _values_by_chunk(weights: Tensor, values: Tensor) -> Tensor:
    """As `_values_by_row`, for one sequence's [n, C, heads, CHUNK] weights, chunk by chunk."""
    rows, chunks = weights.shape[:2]
    total = torch.bmm(weights[:, 0], values[0].expand(rows, -1, -1))
    for chunk in range(1, chunks):
        total += torch.bmm(weights[:, chunk], values[chunk].expand(rows, -1, -1))
    return total
