"""Builds layers for the compiled kernels from a checkpoint: the twin of loading.py. Knows DeepSeek's tensor names."""

import ctypes
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.cpu import library
from outrider.kernels.cpu.library import FLOAT32, Linear
from outrider.kernels.cpu.packing import Arena, gates_beside_ups, kind_of, packed
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.layers import LATENT_NORM_EPS
from outrider.workers.model.rotary import rotary_table
from outrider.workers.model.weights import Checkpoint

Item = TypeVar("Item", bound=ctypes.Structure)
Kept = TypeVar("Kept")


class CompiledLoader:
    """Reads `checkpoint` into the kernels' structures. What they point to lives as long as the loader."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        quantization: str | None,
        block_size: int,
        fast: bool = False,
    ) -> None:
        self.config, self.dtype = config, dtype
        self._fast = fast
        self._checkpoint = checkpoint
        self._kind = kind_of(dtype, quantization)
        self._arena = Arena()
        self._kept: list[object] = []
        self.shape = self._shape(block_size)

    def linear(self, *sizes: tuple[str, int], inputs: int, order: NDArray[np.int32] | None = None) -> Linear:
        """One product over the weights named in `sizes`, each with its number of outputs, laid one after another."""
        return packed(self._arena, self._weights(sizes, inputs), self._kind, order)

    def vector(self, name: str, size: int) -> int:
        """The address of a tensor [size] in float32."""
        return self._keep(self._read(name, torch.float32, size)).data_ptr()

    def embedding(self) -> tuple[int, int]:
        """Address and kind of the embedding [vocab, hidden]."""
        table = self._keep(self._read("embed_tokens.weight", self.dtype, *self._vocabulary_shape()))
        return table.data_ptr(), kind_of(self.dtype)

    def head(self, order: NDArray[np.int32] | None = None) -> Linear:
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        weight = self._checkpoint.tensor(name, self.dtype, self._vocabulary_shape())
        return packed(self._arena, weight, self._kind, order)

    def layer(self, number: int) -> library.Layer:
        hidden, routed, name = self.config.hidden_size, self.config.is_moe_layer(number), f"layers.{number}."
        layer = library.Layer(
            input_norm=self.vector(name + "input_layernorm.weight", hidden),
            post_norm=self.vector(name + "post_attention_layernorm.weight", hidden),
            attention=self._attention(name + "self_attn."),
            routed=routed,
        )
        if routed:
            self._route(layer, name + "mlp.")
        else:
            layer.dense = self._mlp(name + "mlp.", self.config.intermediate_size)
        return layer

    def _shape(self, block_size: int) -> library.Shape:
        config = self.config
        return library.Shape(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            nope=config.qk_nope_head_dim,
            rope=config.qk_rope_head_dim,
            value=config.v_head_dim,
            latent_rank=config.kv_lora_rank,
            query_rank=config.q_lora_rank or 0,
            experts=config.n_routed_experts,
            chosen=config.num_experts_per_tok if config.n_routed_experts else 0,
            groups=config.n_group,
            chosen_groups=min(config.topk_group, config.n_group),
            normalise=config.norm_topk_prob,
            block_size=block_size,
            cache_kind=kind_of(self.dtype),
            fast=self._fast,
            routed_scale=config.routed_scaling_factor,
            eps=config.rms_norm_eps,
            latent_eps=LATENT_NORM_EPS,
            softmax_scale=config.softmax_scale,
            rotary=self._keep(torch.from_numpy(rotary_table(config))).data_ptr(),
        )

    def _attention(self, name: str) -> library.Attention:
        config, hidden, rank = self.config, self.config.hidden_size, self.config.q_lora_rank
        queries = config.num_attention_heads * config.qk_head_dim
        key = (name + "kv_a_proj_with_mqa", config.head_dim_latent)
        by_head = self._latent_up(name)
        return library.Attention(
            down=self.linear((name + "q_a_proj", rank) if rank else (name + "q_proj", queries), key, inputs=hidden),
            query_up=self.linear((name + "q_b_proj", queries), inputs=rank) if rank else Linear(),
            output=self.linear((name + "o_proj", hidden), inputs=config.num_attention_heads * config.v_head_dim),
            key_up=self._each(head[: config.qk_nope_head_dim].t() for head in by_head),
            value_up=self._each(head[config.qk_nope_head_dim :] for head in by_head),
            key_expand=self._each(head[: config.qk_nope_head_dim] for head in by_head) if self._fast else None,
            query_norm=self.vector(name + "q_a_layernorm.weight", rank) if rank else None,
            latent_norm=self.vector(name + "kv_a_layernorm.weight", config.kv_lora_rank),
        )

    def _latent_up(self, name: str) -> Tensor:
        """kv_b_proj by head, [heads, nope + v, latent]: into the latent space for keys, out of it for values."""
        config = self.config
        heads, outputs = config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim
        weight = self._weights([(name + "kv_b_proj", heads * outputs)], config.kv_lora_rank)
        return weight.view(heads, outputs, config.kv_lora_rank)

    def _each(self, weights: Iterable[Tensor]) -> "ctypes.Array[Linear]":
        return self._array(Linear, [packed(self._arena, weight, self._kind) for weight in weights])

    def _route(self, layer: library.Layer, name: str) -> None:
        config = self.config
        routed, shared = config.n_routed_experts, config.n_shared_experts * config.moe_intermediate_size
        gate = self._read(name + "gate.weight", torch.float32, routed, config.hidden_size)
        layer.router = packed(self._arena, gate, FLOAT32)
        layer.router_bias = self.vector(name + "gate.e_score_correction_bias", routed)
        experts = [self._mlp(f"{name}experts.{expert}.", config.moe_intermediate_size) for expert in range(routed)]
        layer.experts = self._array(library.Mlp, experts)
        layer.shared = shared > 0
        if shared:
            layer.dense = self._mlp(name + "shared_experts.", shared)

    def _mlp(self, name: str, width: int) -> library.Mlp:
        hidden = self.config.hidden_size
        sizes = ((name + "gate_proj", width), (name + "up_proj", width))
        return library.Mlp(
            gate_up=self.linear(*sizes, inputs=hidden, order=gates_beside_ups(width)),
            down=self.linear((name + "down_proj", hidden), inputs=width),
            width=width,
        )

    def _weights(self, sizes: Sequence[tuple[str, int]], inputs: int) -> Tensor:
        weights = [self._read(f"{name}.weight", self.dtype, outputs, inputs) for name, outputs in sizes]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _read(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        return self._checkpoint.tensor("model." + name, dtype, shape)

    def _vocabulary_shape(self) -> tuple[int, int]:
        return self.config.vocab_size, self.config.hidden_size

    def _array(self, kind: type[Item], items: list[Item]) -> "ctypes.Array[Item]":
        return self._keep((kind * len(items))(*items))

    def _keep(self, value: Kept) -> Kept:
        self._kept.append(value)
        return value
