"""Multi-head latent attention over the paged cache (DeepSeek-V2, arXiv 2405.04434, section 2.1), in its letters:

    h      a token's normed input            c_q    W_DQ h, the latent of its queries
    q_c    W_UQ c_q, a head's query          q_r    RoPE(W_QR c_q), its rotary part
    c_kv   W_DKV h, the latent of its keys   k_r    RoPE(W_KR h), the rotary key that all heads share
    k_c    W_UK c_kv, a head's key           v_c    W_UV c_kv, a head's value
    o      a head's output                   u      W_O [o of all heads], the layer's output

W_DQ, W_DKV and W_KR are one product (`down`), W_UQ and W_QR another (`query_up`). W_UK and W_UV are kv_b_proj, in one
of two forms. Absorbed: the cache holds c_kv and k_r; W_UK is absorbed into the query, W_UV applied to the weighted sum.
By head, where heads are few (`ModelConfig.caches_heads`): the cache holds k_r, and each head's k_c and v_c.

Products with a head's weights are batches of items of one fixed shape (ROW_TILE rows) and, as attending.py's are, in
float32: a row's bits do not depend on the other rows.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.workers.model.attending import HEAD_TILE, HeadChunks, attend
from outrider.workers.model.batch import Batch
from outrider.workers.model.layers import RmsNorm, SharedProduct
from outrider.workers.model.linear import Linear
from outrider.workers.model.rotary import Rotation, rotate
from outrider.workers.parallel.sharing import Columns
from outrider.workers.types.model.model_config import ModelConfig

ROW_TILE = 4  # rows per item of a product with a head's weights


class Form(nn.Module, ABC):
    """What a cache slot holds, and how queries attend to it."""

    @abstractmethod
    def slot(self, c_kv: Tensor, k_r: Tensor) -> Tensor:
        """The cache entries of rows [R, width], from `c_kv` [R, latent], normed, and `k_r` [R, rope]."""

    @abstractmethod
    def query(self, q_c: Tensor, q_r: Tensor) -> Tensor:
        """Scaled queries for the cache's keys [R, heads, key], from [R, heads, nope] and [R, heads, rope]."""

    @abstractmethod
    def attend(self, query: Tensor, cache: Tensor, batch: Batch) -> Tensor:
        """The heads' outputs o [R, heads, v] of `query`."""


class Absorbed(Form):
    """q_c (W_UK c_kv) = (q_c W_UK) c_kv: all heads attend to the latents, and their sums are taken through W_UV.

    `kv_up` [heads, latent, nope + v] is this rank's part of W_UK and W_UV, in float32.
    """

    def __init__(self, config: ModelConfig, kv_up: Tensor, head_tile: int | None) -> None:
        super().__init__()
        nope, self._head_tile = config.qk_nope_head_dim, head_tile
        self._scale, self._rank = config.softmax_scale, config.kv_lora_rank
        key_up = kv_up[..., :nope].transpose(1, 2).contiguous() * config.softmax_scale  # W_UK [heads, nope, latent]
        self.key_up = nn.Parameter(key_up, requires_grad=False)
        self.value_up = nn.Parameter(kv_up[..., nope:].contiguous(), requires_grad=False)  # W_UV [heads, latent, v]

    def slot(self, c_kv: Tensor, k_r: Tensor) -> Tensor:
        return torch.cat([c_kv, k_r], dim=-1)

    def query(self, q_c: Tensor, q_r: Tensor) -> Tensor:
        return torch.cat([per_head(q_c, self.key_up), q_r * self._scale], dim=-1)

    def attend(self, query: Tensor, cache: Tensor, batch: Batch) -> Tensor:
        return per_head(attend(query, cache, batch, self._head_chunks, self._head_tile), self.value_up)

    def _head_chunks(self, chunks: Tensor) -> HeadChunks:
        heads = self.key_up.shape[0]
        tile = self._head_tile or heads
        for first in range(0, heads, tile):
            yield slice(first, min(first + tile, heads)), chunks, chunks[..., : self._rank]


class ByHead(Form):
    """Each head attends to its own keys and values. A slot is k_r, then the heads' k_c, then their v_c."""

    def __init__(self, config: ModelConfig, kv_up: Tensor, head_tile: int | None) -> None:
        super().__init__()
        self._nope, self._rope, self._head_tile = config.qk_nope_head_dim, config.qk_rope_head_dim, head_tile
        self._scale, self._value = config.softmax_scale, config.v_head_dim
        self.kv_up = nn.Parameter(kv_up, requires_grad=False)

    def slot(self, c_kv: Tensor, k_r: Tensor) -> Tensor:
        up = per_head(c_kv[:, None].expand(-1, self.kv_up.shape[0], -1), self.kv_up)
        k_c, v_c = up[..., : self._nope], up[..., self._nope :]
        return torch.cat([k_r, k_c.flatten(1), v_c.flatten(1)], dim=-1)

    def query(self, q_c: Tensor, q_r: Tensor) -> Tensor:
        return torch.cat([q_c, q_r], dim=-1) * self._scale

    def attend(self, query: Tensor, cache: Tensor, batch: Batch) -> Tensor:
        return attend(query, cache, batch, self._head_chunks, self._head_tile)

    def _head_chunks(self, chunks: Tensor) -> HeadChunks:
        heads = self.kv_up.shape[0]
        k_r, keys, values = torch.split(chunks, [self._rope, heads * self._nope, heads * self._value], dim=-1)
        own = zip(torch.split(keys, self._nope, dim=-1), torch.split(values, self._value, dim=-1), strict=True)
        for head, (k_c, v_c) in enumerate(own):
            yield slice(head, head + 1), torch.cat([k_c, k_r], dim=-1), v_c


def make_form(config: ModelConfig, kv_up: Tensor, head_tile: int | None = HEAD_TILE) -> Form:
    """The form that this model's cache has; `head_tile`: see `attend`."""
    return (ByHead if config.caches_heads else Absorbed)(config, kv_up, head_tile)


class Attention(nn.Module):
    """One layer's attention. Without `query_up` the down product computes the queries themselves.

    If several ranks share the layer, `form` has this rank's heads, `heads` gathers the outputs of all heads, and
    `output`, W_O, computes a slice of u.
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

    def forward(self, batch: Batch, h: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        """`h` [R, hidden] -> u [W, own columns]. Writes its rows to `cache` [slots, width], then attends to it."""
        return self.attend(batch, self.fill(batch, h, rotation, cache), cache, h.dtype)

    def fill(self, batch: Batch, h: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        """Writes the rows `h` [R, hidden] to `cache`. Returns the queries of the wanted rows [W, heads, key]."""
        nope, rope, latent = self.config.qk_nope_head_dim, self.config.qk_rope_head_dim, self.config.kv_lora_rank
        down = self.down(h)
        c_q, c_kv, k_r = torch.split(down, [down.shape[1] - latent - rope, latent, rope], dim=1)

        q = c_q if self.query_norm is None or self.query_up is None else self.query_up(self.query_norm(c_q))
        q_c, q_r = torch.split(q.float().unflatten(1, (-1, nope + rope)), [nope, rope], dim=-1)

        turned = rotate(torch.cat([q_r, k_r[:, None].float()], dim=1), rotation)
        q_r, k_r = turned[:, :-1], turned[:, -1]

        self._write(batch, self.form.slot(self.latent_norm(c_kv).float(), k_r), cache)
        return batch.of_wanted(self.form.query(q_c, q_r))

    def attend(self, batch: Batch, query: Tensor, cache: Tensor, dtype: torch.dtype) -> Tensor:
        """u [W, own columns] in `dtype`, of `query` [W, heads, key] with W at least 1."""
        o = self.form.attend(query, cache, batch).flatten(1).to(dtype)  # [W, own heads * v]
        u: Tensor = self.output(o if self.heads is None else self.heads(o))
        return u

    def _write(self, batch: Batch, slot: Tensor, cache: Tensor) -> None:
        slot = slot.to(cache.dtype)
        written = slot if batch.write_rows is None else slot.index_select(0, batch.write_rows)
        cache.index_copy_(0, batch.write_slots, written)


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
