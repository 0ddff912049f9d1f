"""Multi-head latent attention over the paged latent cache, in the absorbed form (DeepSeek-V2, arXiv 2405.04434).

A query is taken into the latent space, attends the cached latents themselves, and what it gathers is taken out again.
Every product is a batch of items of one fixed shape (HEAD_TILE heads of a row against CHUNK slots; ROW_TILE rows of a
head against its up-projection), every sum over chunks runs in the order of the chunks, and all of it is in float32: so
a row's bits depend neither on the rows beside it, nor on the number of query rows, nor on where its blocks lie, nor on
which rank has its heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.kernels.cpu.packing import private_memory
from outrider.workers.model.batch import CHUNK, MIN_CHUNKS, Batch, Group
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.layers import RmsNorm, SharedProduct
from outrider.workers.model.linear import Linear
from outrider.workers.model.rotary import Rotation, rotate
from outrider.workers.parallel.sharing import Columns

ROW_TILE = 4  # rows per item of a product with a head's up-projection
HEAD_TILE = 4  # heads per item of a product with the cache


class LatentCache:
    """The latents of some layers: one page of slots after another, all finite from the start."""

    def __init__(
        self, layers: int, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (layers, block_size, config.head_dim_latent)
        self._dtype, self.device = dtype, device
        self.layers: list[Tensor] = []  # each [slots, latent]

    @property
    def bytes_per_block(self) -> int:
        layers, block_size, latent = self._shape
        return layers * block_size * latent * self._dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        """Room for blocks 0..num_blocks-1, and slots enough after them for an item that begins in the last one."""
        layers, block_size, latent = self._shape
        slots = num_blocks * block_size + MIN_CHUNKS * CHUNK
        self.layers = [zeros_when_touched(slots, latent, self._dtype, self.device) for _ in range(layers)]


def zeros_when_touched(slots: int, latent: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros [slots, latent]. On a CPU they take memory once they are written, in huge pages where there are any."""
    if device.type != "cpu":
        return torch.zeros(slots, latent, dtype=dtype, device=device)
    memory = private_memory(slots * latent * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(slots, latent)


class Attention(nn.Module):
    """One layer's attention. `down` makes the query's and the key's latents in one product.

    `key_up` [heads, nope, latent] and `value_up` [heads, latent, v] are the halves of kv_b_proj, in float32: of this
    rank's heads, where several share the layer; `heads` then joins what all of them gathered, and `output` makes a
    slice of the outputs. `head_tile`: heads that attend as one item, None for all.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        down: SharedProduct,
        query_norm: RmsNorm | None,
        query_up: Linear | None,
        latent_norm: RmsNorm,
        key_up: Tensor,
        value_up: Tensor,
        heads: Columns | None,
        output: Linear,
        head_tile: int | None = HEAD_TILE,
    ) -> None:
        super().__init__()
        self.config = config
        self.down, self.query_norm, self.query_up, self.latent_norm = down, query_norm, query_up, latent_norm
        self.key_up = nn.Parameter(key_up * config.softmax_scale, requires_grad=False)
        self.value_up = nn.Parameter(value_up, requires_grad=False)
        self.heads, self.output, self._head_tile = heads, output, head_tile

    def forward(self, batch: Batch, x: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        """`x` [R, hidden], normed -> [R, own columns]. Writes its rows to `cache` [slots, latent], then attends it."""
        query, latent = self._project(x, rotation)
        latent = latent.to(cache.dtype)
        written = latent if batch.write_rows is None else latent.index_select(0, batch.write_rows)
        cache.index_copy_(0, batch.write_slots, written)
        gathered = attend_in_tiles(query, cache, batch, self.config.kv_lora_rank, self._head_tile)  # [R, heads, latent]
        heads = per_head(gathered, self.value_up)  # [R, heads, v]
        values = heads.flatten(1).to(x.dtype)  # [R, own heads * v]
        out: Tensor = self.output(values if self.heads is None else self.heads(values))
        return out

    def _project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Queries in the latent space, scaled [R, heads, latent], and what the rows leave in the cache [R, latent]."""
        config = self.config
        rope, heads = config.qk_rope_head_dim, self.key_up.shape[0]
        low = self.down(x)
        query, key = low[:, : -config.head_dim_latent], low[:, -config.head_dim_latent :]
        if self.query_norm is not None and self.query_up is not None:
            query = self.query_up(self.query_norm(query))
        query = query.float().view(-1, heads, config.qk_head_dim)
        turned = rotate(torch.cat([query[..., -rope:], key[:, None, -rope:].float()], dim=1), rotation)
        absorbed = per_head(query[..., :-rope], self.key_up)  # [R, heads, kv_lora_rank]
        query = torch.cat([absorbed, turned[:, :heads].mul_(config.softmax_scale)], dim=-1)
        latent = torch.cat([self.latent_norm(key[:, :-rope]).float(), turned[:, heads]], dim=-1)
        return query, latent


def per_head(x: Tensor, weights: Tensor) -> Tensor:
    """`x` [R, heads, inputs] by each head's `weights` [heads, inputs, outputs] -> [R, heads, outputs], tile by tile."""
    rows, heads, _ = x.shape
    tiles = max(-(-rows // ROW_TILE), 2 if heads == 1 else 1)  # a product never has one item only
    padded = functional.pad(x, (0, 0, 0, 0, 0, tiles * ROW_TILE - rows))
    if heads > 1 and tiles <= heads:
        parts = [torch.bmm(tile.transpose(0, 1), weights) for tile in torch.split(padded, ROW_TILE)]
        out = parts[0] if tiles == 1 else torch.cat(parts, dim=1)  # [heads, tiles * ROW_TILE, outputs]
    else:
        by_head = padded.view(tiles, ROW_TILE, heads, -1)
        parts = [torch.bmm(by_head[:, :, h], weights[h].expand(tiles, -1, -1)).flatten(0, 1) for h in range(heads)]
        out = torch.stack(parts)
    return out.transpose(0, 1)[:rows]


def attend_in_tiles(query: Tensor, cache: Tensor, batch: Batch, value_dim: int, head_tile: int | None) -> Tensor:
    """As `attend`, `head_tile` heads at a time; the last tile is filled up with heads of no effect."""
    heads = query.shape[1]
    if head_tile is None or heads == head_tile:
        return attend(query, cache, batch, value_dim)
    padded = functional.pad(query, (0, 0, 0, -heads % head_tile))
    tiles = [attend(tile.contiguous(), cache, batch, value_dim) for tile in torch.split(padded, head_tile, dim=1)]
    return torch.cat(tiles, dim=1)[:, :heads]


def attend(query: Tensor, cache: Tensor, batch: Batch, value_dim: int) -> Tensor:
    """`query` [R, heads, latent] over `cache` [slots, latent] -> [R, heads, value_dim] in float32."""
    if len(batch.groups) == 1 and batch.groups[0].row_ids is None:
        return _attend_group(query, cache, batch.groups[0], batch.page_size, value_dim)
    out = query.new_empty(*query.shape[:2], value_dim)
    for group in batch.groups:
        rows = query.index_select(0, group.row_ids) if group.row_ids is not None else query
        gathered = _attend_group(rows, cache, group, batch.page_size, value_dim)
        out.index_copy_(0, group.row_ids, gathered) if group.row_ids is not None else out.copy_(gathered)
    return out


def _attend_group(query: Tensor, cache: Tensor, group: Group, page_size: int, value_dim: int) -> Tensor:
    """Attention of one rectangle. The softmax's maximum is taken over all chunks first: no partial sum is rescaled."""
    sequences, rows, chunks = group.sequences, group.rows, group.chunks
    heads, latent = query.shape[1:]
    keys = _keys(cache, group, page_size)  # [S*C, CHUNK, latent]
    query = query.view(rows, sequences, heads, latent)
    by_chunk = sequences == 1 and rows > chunks
    scores = _scores_by_chunk(query[:, 0], keys) if by_chunk else _scores_by_row(query, keys, chunks)
    scores = scores.view(rows, sequences, chunks, heads, CHUNK).add_(group.bias)
    weights = scores.sub_(scores.amax(dim=(2, 4), keepdim=True)).exp_()
    total = weights.sum(dim=-1).cumsum(dim=2)[:, :, -1]  # [n, S, heads], summed in the order of the chunks
    values = keys[:, :, :value_dim]
    gathered = _values_by_chunk(weights[:, 0], values) if by_chunk else _values_by_row(weights, values)
    return gathered.view(-1, heads, value_dim).div_(total.view(-1, heads, 1))


def _keys(cache: Tensor, group: Group, page_size: int) -> Tensor:
    """The group's chunks of the cache in float32 [S*C, CHUNK, latent], in place where they already lie side by side."""
    items = group.sequences * group.chunks
    if group.first_page is not None:
        start = group.first_page * page_size
        return cache[start : start + items * CHUNK].view(items, CHUNK, -1).float()
    slots = cache.shape[0] // page_size * page_size
    pages = cache[:slots].view(-1, page_size * cache.shape[1])
    return pages.index_select(0, group.pages).view(items, CHUNK, -1).float()


def _scores_by_row(query: Tensor, keys: Tensor, chunks: int) -> Tensor:
    """Every sequence's j-th row against all its chunks, for each j -> [n, S*C, heads, CHUNK]."""
    rows, sequences, heads, latent = query.shape
    scores = query.new_empty(rows, sequences * chunks, heads, CHUNK)
    for row in range(rows):
        items = query[row].unsqueeze(1).expand(-1, chunks, -1, -1).reshape(-1, heads, latent)
        torch.bmm(items, keys.transpose(1, 2), out=scores[row])
    return scores


def _values_by_row(weights: Tensor, values: Tensor) -> Tensor:
    """Values by their `weights` [n, S, C, heads, CHUNK], summed over chunks in their order -> [n, S, heads, values]."""
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
    """One sequence's rows against each of its chunks in turn -> [n, C, heads, CHUNK]."""
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
