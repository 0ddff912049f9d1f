"""Weights in the layout of the GPU kernels: FP8 stays FP8, experts are stacked, each rank reads its slices.

A checkpoint's FP8 weights with 128 x 128 blocks are never widened, except W^UK and W^UV, which the absorbed form of
attention multiplies in 16 bits, and weights whose slice does not fall on block boundaries. Other weights have the
model's dtype. Tensors are copied to the device one at a time, so the host holds at most one of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from outrider.workers.experts.layer import ExpertLayer
from outrider.workers.model.gpu.moving_experts import MovingExperts
from outrider.workers.model.gpu.stack import Stack, Weight
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.model.model_config import ModelConfig

BLOCK = 128  # the side of an FP8 block that the kernels support


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuAttention:
    """One layer's attention: this rank's heads."""

    down: Weight  # outputs: query latent (or this rank's queries), KV latent, rotary key
    query_norm: Tensor | None
    query_up: Weight | None
    latent_norm: Tensor
    key_up: Tensor  # [heads, nope, rank]
    value_up: Tensor  # [heads, rank, v]
    output: Weight  # [hidden, own heads * v]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMoe:
    """Router and experts. Shared experts come last in `experts`; or are in `shared`, if whole experts are spread."""

    router: Weight  # [routed, hidden]
    bias: Tensor  # [routed] float32
    experts: Stack
    shared: Stack | None = None
    moving: MovingExperts | None = None  # spread experts that may move


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLayer:
    """A decoder layer. A dense MLP is a stack of one expert."""

    input_norm: Tensor
    attention: GpuAttention
    post_norm: Tensor
    mlp: Stack | GpuMoe


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModule:
    """One MTP module."""

    embedding_norm: Tensor
    hidden_norm: Tensor
    join: Weight
    layer: GpuLayer
    norm: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoader:
    """Loads a rank's shard of `checkpoint` to `device`. `moving`: spread experts may move while they serve."""

    config: ModelConfig
    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device
    shard: Shard
    moving: bool = False

    def layer(self, number: int) -> GpuLayer:
        name, hidden = f"model.layers.{number}.", self.config.hidden_size
        moe = self.config.is_moe_layer(number)
        return GpuLayer(
            input_norm=self.tensor(name + "input_layernorm.weight", hidden),
            attention=self._attention(name + "self_attn."),
            post_norm=self.tensor(name + "post_attention_layernorm.weight", hidden),
            mlp=self._moe(number, name + "mlp.") if moe else self._dense(name + "mlp."),
        )

    def module(self, number: int) -> GpuModule:
        name, hidden = f"model.layers.{number}.", self.config.hidden_size
        return GpuModule(
            embedding_norm=self.tensor(name + "enorm.weight", hidden),
            hidden_norm=self.tensor(name + "hnorm.weight", hidden),
            join=self.weight([(name + "eh_proj.weight", hidden, self.shard.own(hidden))], 2 * hidden),
            layer=self.layer(number),
            norm=self.tensor(name + "shared_head.norm.weight", hidden),
        )

    def embedding(self) -> Tensor:
        """[vocab, own columns of hidden]."""
        shape = self.config.vocab_size, self.config.hidden_size
        columns = self.shard.own(self.config.hidden_size)
        return self.checkpoint.tensor("model.embed_tokens.weight", self.dtype, shape, columns=columns).to(self.device)

    def head(self) -> Weight:
        """This rank's slice of the vocabulary."""
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        vocab = self.config.vocab_size
        rows = self.shard.vocabulary(vocab).slice(self.shard.tensor)
        return self.weight([(name, vocab, rows)], self.config.hidden_size)

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        """The tensor, or some of its rows; widened if FP8."""
        return self.checkpoint.tensor(name, dtype or self.dtype, shape, rows).to(self.device)

    def weight(self, parts: Sequence[tuple[str, int, slice]], inputs: int, columns: slice | None = None) -> Weight:
        """Concatenates rows of several weights. `parts`: name, number of rows, slice to read; `columns` of each.

        All are widened if a slice does not fall on FP8 block boundaries.
        """
        width = inputs if columns is None else columns.stop - columns.start
        sizes = [rows.stop - rows.start for _, _, rows in parts]
        borders = [*(rows.start for _, _, rows in parts), *sizes[:-1], 0 if columns is None else columns.start]
        in_blocks = all(self.keeps_fp8(name) for name, _, _ in parts) and not any(each % BLOCK for each in borders)
        made = self._empty((sum(sizes), width), in_blocks)
        first = 0
        for (name, outputs, rows), size in zip(parts, sizes, strict=True):
            self._read(made, slice(first, first + size), name, (outputs, inputs), rows, columns)
            first += size
        return made

    def keeps_fp8(self, name: str) -> bool:
        """Whether the weight stays in FP8."""
        return self.config.quantization_block == (BLOCK, BLOCK) and self.checkpoint.is_fp8(name)

    def _empty(self, shape: tuple[int, ...], fp8: bool) -> Weight:
        *stacked, outputs, inputs = shape
        if not fp8:
            return Weight(torch.empty(shape, dtype=self.dtype, device=self.device))
        blocks = (*stacked, -(-outputs // BLOCK), -(-inputs // BLOCK))
        values = torch.empty(shape, dtype=torch.float8_e4m3fn, device=self.device)
        return Weight(values, torch.empty(blocks, dtype=torch.float32, device=self.device))

    def _read(
        self, made: Weight, at: slice, name: str, shape: tuple[int, int], rows: slice, columns: slice | None
    ) -> None:
        """Reads rows and columns of a weight into rows `at` of `made`."""
        if made.scale is None:
            made.values[at] = self.checkpoint.tensor(name, self.dtype, shape, rows, columns).to(self.device)
            return
        values, scales = self.checkpoint.blocks(name, shape, rows, columns)
        made.values[at] = values.to(self.device)
        made.scale[at.start // BLOCK : at.start // BLOCK + len(scales)] = scales.to(self.device)

    def _attention(self, name: str) -> GpuAttention:
        config, rank, hidden = self.config, self.config.q_lora_rank, self.config.hidden_size
        own, size = self.shard.heads(config.num_attention_heads), config.v_head_dim
        queries = config.num_attention_heads * config.qk_head_dim
        rows = slice(own.start * config.qk_head_dim, own.stop * config.qk_head_dim)
        key = (name + "kv_a_proj_with_mqa.weight", config.head_dim_latent, slice(0, config.head_dim_latent))
        low = (name + "q_a_proj.weight", rank, slice(0, rank)) if rank else (name + "q_proj.weight", queries, rows)
        key_up, value_up = self._latent_up(name, own)
        return GpuAttention(
            down=self.weight([low, key], hidden),
            query_norm=self.tensor(name + "q_a_layernorm.weight", rank) if rank else None,
            query_up=self.weight([(name + "q_b_proj.weight", queries, rows)], rank) if rank else None,
            latent_norm=self.tensor(name + "kv_a_layernorm.weight", config.kv_lora_rank),
            key_up=key_up,
            value_up=value_up,
            output=self.weight(
                [(name + "o_proj.weight", hidden, slice(0, hidden))],
                config.num_attention_heads * size,
                slice(own.start * size, own.stop * size),
            ),
        )

    def _latent_up(self, name: str, heads: slice) -> tuple[Tensor, Tensor]:
        """kv_b_proj, split by head into W^UK [heads, nope, rank] and W^UV [heads, rank, v]."""
        config = self.config
        size = config.qk_nope_head_dim + config.v_head_dim
        shape = config.num_attention_heads * size, config.kv_lora_rank
        rows = slice(heads.start * size, heads.stop * size)
        up = self.checkpoint.tensor(name + "kv_b_proj.weight", torch.float32, shape, rows).view(
            -1, size, config.kv_lora_rank
        )
        key, value = up[:, : config.qk_nope_head_dim], up[:, config.qk_nope_head_dim :].transpose(1, 2)
        return self._kept(key), self._kept(value)

    def _kept(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).contiguous().to(self.device)

    def _dense(self, name: str) -> Stack:
        """This rank's slice of a dense MLP."""
        width = self.config.intermediate_size
        return self._stack([(name, slice(0, width))], width)

    def _moe(self, number: int, name: str) -> GpuMoe:
        config, width = self.config, self.config.moe_intermediate_size
        routed, shared = config.n_routed_experts, config.n_shared_experts
        router = Weight(self.tensor(name + "gate.weight", routed, config.hidden_size, dtype=self._router_type(name)))
        bias = self.tensor(name + "gate.e_score_correction_bias", routed, dtype=torch.float32)
        # A shared expert as wide as n routed ones is loaded as n experts: their outputs add up to its output.
        as_routed = [(name + "shared_experts.", slice(n * width, (n + 1) * width)) for n in range(shared)]
        if not self.shard.spread:
            experts = [*self._routed(name, range(routed)), *as_routed]
            return GpuMoe(router=router, bias=bias, experts=self._stack(experts, width, shared_width=shared * width))
        slots = self.shard.slots(routed)
        own = self.shard.first_table(routed).ravel()[slots.start : slots.stop].tolist()
        stack = self._stack(self._routed(name, own), width, first=slots.start, whole=True)
        read_one = partial(self._one_expert, name)
        return GpuMoe(
            router=router,
            bias=bias,
            experts=stack,
            shared=self._stack(as_routed, width, first=routed, shared_width=shared * width) if shared else None,
            moving=MovingExperts(number, self.shard, routed, stack, read_one) if self.moving else None,
        )

    def _routed(self, name: str, experts: Sequence[int]) -> list[tuple[str, slice]]:
        return [(f"{name}experts.{expert}.", slice(0, self.config.moe_intermediate_size)) for expert in experts]

    def _one_expert(self, name: str, expert: int) -> Stack:
        return self._stack(self._routed(name, [expert]), self.config.moe_intermediate_size, whole=True)

    def _router_type(self, name: str) -> torch.dtype:
        """The model's dtype if the checkpoint's router has it, else float32, so that no bits of the router are lost."""
        return self.dtype if self.checkpoint.dtype(name + "gate.weight") == self.dtype else torch.float32

    def _stack(
        self, experts: Sequence[tuple[str, slice]], width: int, *, first: int = 0, whole: bool = False,
        shared_width: int = 0,
    ) -> Stack:  # fmt: skip
        """Stacks MLPs (name, slice of the intermediate size), each `width` wide: this rank's slice, or `whole`."""
        own, hidden = slice(0, width) if whole else self.shard.own(width), self.config.hidden_size
        size = own.stop - own.start
        in_blocks = all(self.keeps_fp8(name + "gate_proj.weight") for name, _ in experts) and size % BLOCK == 0
        gate_up = self._empty((len(experts), 2 * size, hidden), in_blocks)
        down = self._empty((len(experts), hidden, size), in_blocks)
        for number, (name, inner) in enumerate(experts):
            total = shared_width if "shared_experts" in name else inner.stop
            rows = slice(inner.start + own.start, inner.start + own.stop)
            one = Weight(gate_up.values[number], None if gate_up.scale is None else gate_up.scale[number])
            self._read(one, slice(0, size), name + "gate_proj.weight", (total, hidden), rows, None)
            self._read(one, slice(size, 2 * size), name + "up_proj.weight", (total, hidden), rows, None)
            one = Weight(down.values[number], None if down.scale is None else down.scale[number])
            self._read(one, slice(0, hidden), name + "down_proj.weight", (hidden, total), slice(0, hidden), rows)
        return Stack(gate_up=gate_up, down=down, first=first)


def moving_layers(layers: Iterable[GpuLayer]) -> list[ExpertLayer]:
    """Those whose experts may move."""
    sparse = [layer.mlp for layer in layers if isinstance(layer.mlp, GpuMoe)]
    return [mlp.moving.layer for mlp in sparse if mlp.moving is not None]


def bytes_of(*tensors: object) -> int:
    """Device memory of all tensors inside."""
    return sum(map(_bytes, tensors))


def _bytes(part: object) -> int:
    if isinstance(part, Tensor):
        return part.numel() * part.element_size()
    if isinstance(part, list | tuple):
        return bytes_of(*part)
    fields = getattr(part, "__dataclass_fields__", {})
    return bytes_of(*(getattr(part, name) for name in fields))
