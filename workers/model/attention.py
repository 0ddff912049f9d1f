"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) over the paged cache, in one of two forms.

Absorbed: the cache holds latents; a query is taken into the latent space, and what it gathers is taken out again. By
head, where heads are few (`ModelConfig.caches_heads`): the cache holds the keys and values that each head has of the
latents. Products with a head's weights are batches of items of one fixed shape (ROW_TILE rows) and, as attending.py's
are, in float32: a row's bits do not depend on its company.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.workers.model.attending import HEAD_TILE, Met, attend
from outrider.workers.model.batch import Batch
from outrider.workers.model.layers import RmsNorm, SharedProduct
from outrider.workers.model.linear import Linear
from outrider.workers.model.rotary import Rotation, rotate
from outrider.workers.parallel.sharing import Columns
from outrider.workers.types.model_config import ModelConfig

ROW_TILE = 4  # rows per item of a product with a head's weights


class Form(nn.Module, ABC):
    """What queries meet in the cache."""

    @abstractmethod
    def slot(self, latent: Tensor, rope: Tensor) -> Tensor:
        """What rows leave in the cache [R, width]: of normed latents [R, rank] and turned keys [R, rope]."""

    @abstractmethod
    def query(self, query: Tensor, turned: Tensor) -> Tensor:
        """Scaled queries as they meet the cache [R, heads, key], of [R, heads, nope] and, turned, [R, heads, rope]."""

    @abstractmethod
    def attend(self, query: Tensor, cache: Tensor, batch: Batch) -> Tensor:
        """The heads' values [R, heads, v], of queries as they meet `cache`."""


class Absorbed(Form):
    """All heads meet the latents. `kv_up` [heads, latent, nope + v] is this rank's part of kv_b_proj, in float32."""

    def __init__(self, config: ModelConfig, kv_up: Tensor, head_tile: int | None) -> None:
        super().__init__()
        nope, self._head_tile = config.qk_nope_head_dim, head_tile
        self._scale, self._rank = config.softmax_scale, config.kv_lora_rank
        key_up = kv_up[..., :nope].transpose(1, 2).contiguous() * config.softmax_scale  # [heads, nope, latent]
        self.key_up = nn.Parameter(key_up, requires_grad=False)
        self.value_up = nn.Parameter(kv_up[..., nope:].contiguous(), requires_grad=False)  # [heads, latent, v]

    def slot(self, latent: Tensor, rope: Tensor) -> Tensor:
        return torch.cat([latent, rope], dim=-1)

    def query(self, query: Tensor, turned: Tensor) -> Tensor:
        return torch.cat([per_head(query, self.key_up), turned * self._scale], dim=-1)

    def attend(self, query: Tensor, cache: Tensor, batch: Batch) -> Tensor:
        return per_head(attend(query, cache, batch, self._met, self._head_tile), self.value_up)

    def _met(self, chunks: Tensor) -> Met:
        heads = self.key_up.shape[0]
        tile = self._head_tile or heads
        for first in range(0, heads, tile):
            yield slice(first, min(first + tile, heads)), chunks, chunks[..., : self._rank]


class ByHead(Form):
    """Each head meets its own keys and values. A slot is the rotary key, then the heads' own keys, then values."""

    def __init__(self, config: ModelConfig, kv_up: Tensor, head_tile: int | None) -> None:
        super().__init__()
        self._nope, self._rope, self._head_tile = config.qk_nope_head_dim, config.qk_rope_head_dim, head_tile
        self._scale, self._value = config.softmax_scale, config.v_head_dim
        self.kv_up = nn.Parameter(kv_up, requires_grad=False)

    def slot(self, latent: Tensor, rope: Tensor) -> Tensor:
        own = per_head(latent[:, None].expand(-1, self.kv_up.shape[0], -1), self.kv_up)
        return torch.cat([rope, own[..., : self._nope].flatten(1), own[..., self._nope :].flatten(1)], dim=-1)

    def query(self, query: Tensor, turned: Tensor) -> Tensor:
        return torch.cat([query, turned], dim=-1) * self._scale

    def attend(self, query: Tensor, cache: Tensor, batch: Batch) -> Tensor:
        return attend(query, cache, batch, self._met, self._head_tile)

    def _met(self, chunks: Tensor) -> Met:
        heads = self.kv_up.shape[0]
        shared, keys, values = torch.split(chunks, [self._rope, heads * self._nope, heads * self._value], dim=-1)
        own = zip(torch.split(keys, self._nope, dim=-1), torch.split(values, self._value, dim=-1), strict=True)
        for head, (key, value) in enumerate(own):
            yield slice(head, head + 1), torch.cat([key, shared], dim=-1), value


def make_form(config: ModelConfig, kv_up: Tensor, head_tile: int | None = HEAD_TILE) -> Form:
    """The form that the model's cache has; `head_tile`: see `attend`."""
    return (ByHead if config.caches_heads else Absorbed)(config, kv_up, head_tile)


class Attention(nn.Module):
    """One layer's attention. `down` makes the query's and the key's latents in one product.

    Where several ranks share the layer, `form` has this rank's heads, `heads` joins what all of them gathered, and
    `output` makes a slice of the outputs.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        down: SharedProduct,
        query_norm: RmsNorm | None,
        query_up: Linear | None,
        latent_norm: RmsNorm,
        form: Form,
        heads: Columns | None,
        output: Linear,
    ) -> None:
        super().__init__()
        self.config = config
        self.down, self.query_norm, self.query_up, self.latent_norm = down, query_norm, query_up, latent_norm
        self.form, self.heads, self.output = form, heads, output

    def forward(self, batch: Batch, x: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        """`x` [R, hidden], normed -> [W, own columns]. Writes its rows to `cache` [slots, width], then attends it."""
        return self.attend(batch, self.fill(batch, x, rotation, cache), cache, x.dtype)

    def fill(self, batch: Batch, x: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        """Writes rows `x` [R, hidden], normed, to `cache`: all that later ones see of them. The wanted's queries."""
        query, slot = self._project(x, rotation)
        slot = slot.to(cache.dtype)
        written = slot if batch.write_rows is None else slot.index_select(0, batch.write_rows)
        cache.index_copy_(0, batch.write_slots, written)
        return batch.of_wanted(query)

    def attend(self, batch: Batch, query: Tensor, cache: Tensor, dtype: torch.dtype) -> Tensor:
        """What the queries [W, heads, key] gather, W at least 1, as outputs [W, own columns] of that type."""
        values = self.form.attend(query, cache, batch).flatten(1).to(dtype)  # [W, own heads * v]
        out: Tensor = self.output(values if self.heads is None else self.heads(values))
        return out

    def _project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Queries as they meet the cache [R, heads, key], and what the rows leave there [R, width]."""
        config, rope = self.config, self.config.qk_rope_head_dim
        low = self.down(x)
        query, key = low[:, : -config.head_dim_latent], low[:, -config.head_dim_latent :]
        if self.query_norm is not None and self.query_up is not None:
            query = self.query_up(self.query_norm(query))
        query = query.float().unflatten(1, (-1, config.qk_head_dim))
        turned = rotate(torch.cat([query[..., -rope:], key[:, None, -rope:].float()], dim=1), rotation)
        slot = self.form.slot(self.latent_norm(key[:, :-rope]).float(), turned[:, -1])
        return self.form.query(query[..., :-rope], turned[:, :-1]), slot


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
