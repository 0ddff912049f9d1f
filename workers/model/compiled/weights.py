"""Reads a rank's share of tensors into the kernels' structures. Twin of loading.py. Knows DeepSeek's tensor names."""

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.cpu import library
from outrider.kernels.cpu.library import FLOAT32, LinearStruct
from outrider.kernels.cpu.packing import Packer, gates_beside_ups, in_order, keys_before_values
from outrider.workers.model.loading import Part, parts_of
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.model.model_config import ModelConfig

Item = TypeVar("Item", bound=ctypes.Structure)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReader:
    """Reads `checkpoint` into `packer`. Its results are valid while that and `kept` exist."""

    config: ModelConfig
    checkpoint: Checkpoint
    shard: Shard
    dtype: torch.dtype
    kind: int
    fast: bool
    packer: Packer
    kept: list[object]

    def linear(self, *parts: Part, inputs: int, order: NDArray[np.int32] | None = None) -> LinearStruct:
        """One product over concatenated slices of weights."""
        return self.packer.linear(partial(self._weights, parts, inputs), self.kind, order)

    def own(self, name: str, outputs: int) -> Part:
        """This rank's slice of a weight."""
        return Part(name, outputs, self.shard.own(outputs))

    def vector(self, name: str, size: int) -> int:
        """The address of a tensor [size] in float32."""
        return self.packer.values(partial(self._read, name, torch.float32, size))

    def embedding(self) -> int:
        """The address of the embedding [vocab, own columns of hidden]."""
        columns = self.shard.own(self.config.hidden_size)
        shape = self._vocabulary_shape()
        read = self.checkpoint.tensor
        return self.packer.values(lambda: read("model.embed_tokens.weight", self.dtype, shape, columns=columns))

    def head(self) -> LinearStruct:
        """This rank's slice of the vocabulary."""
        rows = self.shard.vocabulary(self.config.vocab_size).slice(self.shard.tensor)
        return self.packer.linear(partial(self._head_weight, rows), self.kind)

    def cut_head(self, ids: NDArray[np.int32]) -> LinearStruct:
        """This rank's slice of a head reduced to the tokens `ids`."""
        own = ids[self.shard.vocabulary(len(ids)).slice(self.shard.tensor)]
        places = in_order(len(own))
        order = np.where(places < 0, places, own[places]).astype(np.int32)
        return self.packer.linear(partial(self._head_weight, None), self.kind, order)

    def _head_weight(self, rows: slice | None) -> Tensor:
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        return self.checkpoint.tensor(name, self.dtype, self._vocabulary_shape(), rows)

    def layer(self, number: int) -> library.Layer:
        """A layer without its routed experts, which are None."""
        hidden, routed, name = self.config.hidden_size, self.config.is_moe_layer(number), f"layers.{number}."
        layer = library.Layer(
            input_norm=self.vector(name + "input_layernorm.weight", hidden),
            post_norm=self.vector(name + "post_attention_layernorm.weight", hidden),
            attention=self._attention(name + "self_attn."),
        )
        if routed:
            self._route(layer, name + "mlp.")
        else:
            layer.dense = self._mlp(name + "mlp.", self.config.intermediate_size)
        return layer

    def experts(self, number: int) -> "ctypes.Array[library.MlpStruct]":
        """A slice of each routed expert of a layer."""
        name, width = f"layers.{number}.mlp.experts.", self.config.moe_intermediate_size
        slices = [self._mlp(f"{name}{expert}.", width) for expert in range(self.config.n_routed_experts)]
        return self._array(library.MlpStruct, slices)

    def expert(self, number: int, expert: int) -> library.MlpStruct:
        """A whole expert."""
        return self._mlp(f"layers.{number}.mlp.experts.{expert}.", self.config.moe_intermediate_size, whole=True)

    def module(self, number: int) -> library.Module:
        """An MTP module without its decoder layer and without what it shares with the model."""
        hidden, name = self.config.hidden_size, f"layers.{number}."
        join = self.linear(self.own(name + "eh_proj", hidden), inputs=2 * hidden)
        self.kept.append(join)
        return library.Module(
            embedding_norm=self.vector(name + "enorm.weight", hidden),
            hidden_norm=self.vector(name + "hnorm.weight", hidden),
            norm=self.vector(name + "shared_head.norm.weight", hidden),
            join=ctypes.pointer(join),
        )

    def _attention(self, name: str) -> library.AttentionStruct:
        config, rank = self.config, self.config.q_lora_rank
        attention = library.AttentionStruct(
            down=self._down(name),
            query_up=self.linear(self._queries(name + "q_b_proj"), inputs=rank) if rank else LinearStruct(),
            output=self.linear(
                self.own(name + "o_proj", config.hidden_size), inputs=config.num_attention_heads * config.v_head_dim
            ),
            query_norm=self.vector(name + "q_a_layernorm.weight", rank) if rank else None,
            latent_norm=self.vector(name + "kv_a_layernorm.weight", config.kv_lora_rank),
        )
        self._latent_up(attention, name + "kv_b_proj")
        return attention

    def _down(self, name: str) -> LinearStruct:
        """Latents, split over the ranks as one range of outputs.

        Without low-rank queries, this rank's queries come first.
        """
        rank, key = self.config.q_lora_rank, (name + "kv_a_proj_with_mqa", self.config.head_dim_latent)
        low = [(name + "q_a_proj", rank), key] if rank else [key]
        own = self.shard.own(sum(outputs for _, outputs in low))
        queries = [] if rank else [self._queries(name + "q_proj")]
        return self.linear(*queries, *parts_of(low, own), inputs=self.config.hidden_size)

    def _queries(self, name: str) -> Part:
        return self._of_heads(name, self.config.qk_head_dim)

    def _of_heads(self, name: str, size: int) -> Part:
        """This rank's heads of a weight with `size` outputs per head."""
        heads = self.shard.heads(self.config.num_attention_heads)
        return Part(name, self.config.num_attention_heads * size, slice(heads.start * size, heads.stop * size))

    def _latent_up(self, attention: library.AttentionStruct, name: str) -> None:
        """This rank's heads of W_UK and W_UV: by head as one product, absorbed as two."""
        nope, outputs = self.config.qk_nope_head_dim, self.config.qk_nope_head_dim + self.config.v_head_dim
        part, latent = self._of_heads(name, outputs), self.config.kv_lora_rank
        if self.config.caches_heads:
            order = keys_before_values(part.size // outputs, nope, outputs - nope)
            attention.key_value_up = self.linear(part, inputs=latent, order=order)
            return
        by_head = functools.cache(
            lambda: self._weights([part], latent).view(-1, outputs, latent)
        )  # lazily: the cache may have it
        attention.key_up = self._each_head(lambda head: by_head()[head, :nope].t())
        attention.value_up = self._each_head(lambda head: by_head()[head, nope:])
        if self.fast:
            attention.key_expand = self._each_head(lambda head: by_head()[head, :nope])

    def _each_head(self, weight: Callable[[int], Tensor]) -> "ctypes.Array[LinearStruct]":
        heads = self.shard.heads(self.config.num_attention_heads)
        own = range(heads.stop - heads.start)
        return self._array(LinearStruct, [self.packer.linear(partial(weight, head), self.kind) for head in own])

    def _route(self, layer: library.Layer, name: str) -> None:
        config = self.config
        routed, shared = config.n_routed_experts, config.n_shared_experts * config.moe_intermediate_size
        gate = partial(self._read, name + "gate.weight", torch.float32, routed, config.hidden_size)
        layer.router = self.packer.linear(gate, FLOAT32)
        layer.router_bias = self.vector(name + "gate.e_score_correction_bias", routed)
        layer.shared = shared > 0
        if shared:
            layer.dense = self._mlp(name + "shared_experts.", shared)

    def _mlp(self, name: str, width: int, *, whole: bool = False) -> library.MlpStruct:
        hidden = self.config.hidden_size
        gate, up, down = (
            Part(name + part, outputs) if whole else self.own(name + part, outputs)
            for part, outputs in (("gate_proj", width), ("up_proj", width), ("down_proj", hidden))
        )
        return library.MlpStruct(
            gate_up=self.linear(gate, up, inputs=hidden, order=gates_beside_ups(gate.size)),
            down=self.linear(down, inputs=width),
            width=gate.size,
        )

    def _weights(self, parts: Sequence[Part], inputs: int) -> Tensor:
        weights = [
            self.checkpoint.tensor(f"model.{part.name}.weight", self.dtype, (part.outputs, inputs), part.rows)
            for part in parts
        ]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _read(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        return self.checkpoint.tensor("model." + name, dtype, shape)

    def _vocabulary_shape(self) -> tuple[int, int]:
        return self.config.vocab_size, self.config.hidden_size

    def _array(self, kind: type[Item], items: list[Item]) -> "ctypes.Array[Item]":
        array = (kind * len(items))(*items)
        self.kept.append(array)
        return array
