"""Builds layers for the compiled kernels from a checkpoint: the twin of loading.py. Knows DeepSeek's tensor names."""

import contextlib
import ctypes
from collections.abc import Iterable, Iterator, Sequence
from ctypes import pointer
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.cpu import library
from outrider.kernels.cpu.context import ExchangeError
from outrider.kernels.cpu.library import FLOAT32, Linear
from outrider.kernels.cpu.packing import Arena, gates_beside_ups, give_back, in_order, kind_of, packed
from outrider.workers.model.compiled_experts import CompiledExperts
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.layers import LATENT_NORM_EPS
from outrider.workers.model.loading import Part, parts_of
from outrider.workers.model.rotary import rotary_table
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.native_group import NativeGroup
from outrider.workers.parallel.sharing import Sharing

# What goes between all ranks of a stage; anything else between those of a tensor group.
_OF_STAGE = {library.PURPOSES.index(each) for each in ("counts of rows", "rows to experts", "expert outputs")}
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
        sharing: Sharing | None = None,
    ) -> None:
        """`sharing`: this rank reads its own slices only."""
        self.config, self.dtype = config, dtype
        self.sharing = sharing or Sharing()
        self.shard = self.sharing.shard
        self.groups = tuple(map(NativeGroup, (self.sharing.tensor, self.sharing.stage)))
        self._fast = fast
        self._checkpoint = checkpoint
        self._kind = kind_of(dtype, quantization)
        self._arena = Arena()
        self._kept: list[object] = []
        self.expert_layers: list[CompiledExperts] = []  # those loaded so far, where experts are spread
        self.shape = self._shape(block_size)

    @property
    def mtp_modules(self) -> int:
        """How many the checkpoint has."""
        return self._checkpoint.mtp_modules(self.config)

    def linear(self, *parts: Part, inputs: int, order: NDArray[np.int32] | None = None) -> Linear:
        """One product over slices of weights, laid one after another."""
        return packed(self._arena, self._weights(parts, inputs), self._kind, order)

    def own(self, name: str, outputs: int) -> Part:
        """This rank's slice of a weight."""
        return Part(name, outputs, self.shard.own(outputs))

    def vector(self, name: str, size: int) -> int:
        """The address of a tensor [size] in float32."""
        return self._keep(self._read(name, torch.float32, size)).data_ptr()

    def embedding(self) -> tuple[int, int]:
        """Address and kind of the embedding [vocab, own columns of hidden]."""
        columns = self.shard.own(self.config.hidden_size)
        table = self._checkpoint.tensor(
            "model.embed_tokens.weight", self.dtype, self._vocabulary_shape(), columns=columns
        )
        return self._keep(table.contiguous()).data_ptr(), kind_of(self.dtype)

    def head(self) -> Linear:
        """This rank's slice of the vocabulary."""
        rows = self.shard.vocabulary(self.config.vocab_size).slice(self.shard.tensor)
        return packed(self._arena, self._head_weight(rows), self._kind)

    def cut_head(self, ids: NDArray[np.int32]) -> Linear:
        """This rank's slice of a head for the tokens `ids` alone."""
        own = ids[self.shard.vocabulary(len(ids)).slice(self.shard.tensor)]
        places = in_order(len(own))
        order = np.where(places < 0, places, own[places]).astype(np.int32)
        return packed(self._arena, self._head_weight(None), self._kind, order)

    def _head_weight(self, rows: slice | None) -> Tensor:
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        return self._checkpoint.tensor(name, self.dtype, self._vocabulary_shape(), rows)

    def layer(self, number: int) -> library.Layer:
        hidden, routed, name = self.config.hidden_size, self.config.is_moe_layer(number), f"layers.{number}."
        layer = library.Layer(
            input_norm=self.vector(name + "input_layernorm.weight", hidden),
            post_norm=self.vector(name + "post_attention_layernorm.weight", hidden),
            attention=self._attention(name + "self_attn."),
        )
        if routed:
            self._route(layer, number, name + "mlp.")
        else:
            layer.dense = self._mlp(name + "mlp.", self.config.intermediate_size)
        return layer

    def _shape(self, block_size: int) -> library.Shape:
        config = self.config
        return library.Shape(
            hidden=config.hidden_size,
            heads=config.num_attention_heads // self.shard.tensors,
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
            shard=None if self.shard.whole else pointer(self._keep(self._structure())),
        )

    def _structure(self) -> library.Shard:
        tensor, stage = self.groups
        return library.Shard(
            tensor=tensor.structure,
            stage=stage.structure,
            unit=self.shard.unit,
            spread=self.shard.spread,
            heads=self.config.num_attention_heads,
        )

    def _attention(self, name: str) -> library.Attention:
        config, rank = self.config, self.config.q_lora_rank
        by_head = self._latent_up(name)
        return library.Attention(
            down=self._down(name),
            query_up=self.linear(self._queries(name + "q_b_proj"), inputs=rank) if rank else Linear(),
            output=self.linear(
                self.own(name + "o_proj", config.hidden_size), inputs=config.num_attention_heads * config.v_head_dim
            ),
            key_up=self._each(head[: config.qk_nope_head_dim].t() for head in by_head),
            value_up=self._each(head[config.qk_nope_head_dim :] for head in by_head),
            key_expand=self._each(head[: config.qk_nope_head_dim] for head in by_head) if self._fast else None,
            query_norm=self.vector(name + "q_a_layernorm.weight", rank) if rank else None,
            latent_norm=self.vector(name + "kv_a_layernorm.weight", config.kv_lora_rank),
        )

    def _down(self, name: str) -> Linear:
        """Latents, split over the ranks as one run of outputs; before them this rank's queries, if made in one step."""
        rank, key = self.config.q_lora_rank, (name + "kv_a_proj_with_mqa", self.config.head_dim_latent)
        low = [(name + "q_a_proj", rank), key] if rank else [key]
        own = self.shard.own(sum(outputs for _, outputs in low))
        queries = [] if rank else [self._queries(name + "q_proj")]
        return self.linear(*queries, *parts_of(low, own), inputs=self.config.hidden_size)

    def _queries(self, name: str) -> Part:
        return self._of_heads(name, self.config.qk_head_dim)

    def _of_heads(self, name: str, size: int) -> Part:
        """This rank's heads of a weight with `size` outputs for each."""
        heads = self.shard.heads(self.config.num_attention_heads)
        return Part(name, self.config.num_attention_heads * size, slice(heads.start * size, heads.stop * size))

    def _latent_up(self, name: str) -> Tensor:
        """kv_b_proj by head, [own heads, nope + v, latent]: into the latent space for keys, out of it for values."""
        outputs = self.config.qk_nope_head_dim + self.config.v_head_dim
        weight = self._weights([self._of_heads(name + "kv_b_proj", outputs)], self.config.kv_lora_rank)
        return weight.view(-1, outputs, self.config.kv_lora_rank)

    def _each(self, weights: Iterable[Tensor]) -> "ctypes.Array[Linear]":
        return self._array(Linear, [packed(self._arena, weight, self._kind) for weight in weights])

    def _route(self, layer: library.Layer, number: int, name: str) -> None:
        config = self.config
        routed, shared = config.n_routed_experts, config.n_shared_experts * config.moe_intermediate_size
        gate = self._read(name + "gate.weight", torch.float32, routed, config.hidden_size)
        layer.router = packed(self._arena, gate, FLOAT32)
        layer.router_bias = self.vector(name + "gate.e_score_correction_bias", routed)
        layer.routed = pointer(self._keep(self._routed(number, name + "experts.")))
        layer.shared = shared > 0
        if shared:
            layer.dense = self._mlp(name + "shared_experts.", shared)

    def _routed(self, number: int, name: str) -> library.RoutedExperts:
        """A slice of each, or this rank's, whole."""
        count, width = self.config.n_routed_experts, self.config.moe_intermediate_size
        if not self.shard.spread:
            slices = [self._mlp(f"{name}{expert}.", width) for expert in range(count)]
            return library.RoutedExperts(slots=self._array(library.Mlp, slices), count=count)
        spread = CompiledExperts(
            number,
            self.shard,
            count,
            width,
            lambda expert: self._mlp(f"{name}{expert}.", width, whole=True),
            self._free,
        )
        self.expert_layers.append(spread)
        return spread.structure

    def _free(self, mlp: library.Mlp) -> None:
        for linear in (mlp.gate_up, mlp.down):
            give_back(self._arena, linear)

    def _mlp(self, name: str, width: int, *, whole: bool = False) -> library.Mlp:
        hidden = self.config.hidden_size
        gate, up, down = (
            Part(name + part, outputs) if whole else self.own(name + part, outputs)
            for part, outputs in (("gate_proj", width), ("up_proj", width), ("down_proj", hidden))
        )
        return library.Mlp(
            gate_up=self.linear(gate, up, inputs=hidden, order=gates_beside_ups(gate.size)),
            down=self.linear(down, inputs=width),
            width=gate.size,
        )

    def _weights(self, parts: Sequence[Part], inputs: int) -> Tensor:
        weights = [
            self._checkpoint.tensor(f"model.{part.name}.weight", self.dtype, (part.outputs, inputs), part.rows)
            for part in parts
        ]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _read(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        return self._checkpoint.tensor("model." + name, dtype, shape)

    def _vocabulary_shape(self) -> tuple[int, int]:
        return self.config.vocab_size, self.config.hidden_size

    def _array(self, kind: type[Item], items: list[Item]) -> "ctypes.Array[Item]":
        return self._keep((kind * len(items))(*items))

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Around a call of the kernels: what other ranks did not do is said in words. ExchangeBrokenError."""
        try:
            yield
        except ExchangeError as error:
            tensor, stage = self.groups
            raise (stage if error.purpose in _OF_STAGE else tensor).explain(error) from error

    def _keep(self, value: Kept) -> Kept:
        self._kept.append(value)
        return value
