"""Builds layers from a checkpoint, tensor by tensor. Knows DeepSeek's tensor names; does not know rounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from outrider.workers.model.attending import HEAD_TILE
from outrider.workers.model.attention import Attention, make_form
from outrider.workers.model.batch import Batch
from outrider.workers.model.layers import LATENT_NORM_EPS, Mlp, RmsNorm, SharedProduct
from outrider.workers.model.linear import Linear, make_linear
from outrider.workers.model.moe import Experts, MoE, Router
from outrider.workers.model.rotary import Rotation
from outrider.workers.model.spread_experts import SpreadExperts
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.deep_ep import expert_dispatch
from outrider.workers.parallel.expert_dispatch import LocalDispatch, MaskedDispatch
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Join, Sharing
from outrider.workers.types.model.model_config import ModelConfig

Named = tuple[str, int]  # a weight's name and number of outputs
Progress = Callable[[int, int], None]  # layers loaded, layers in all


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a weight with `outputs` rows; None: all of them."""

    name: str
    outputs: int
    rows: slice | None = None

    @property
    def size(self) -> int:
        return self.outputs if self.rows is None else int(self.rows.stop - self.rows.start)


def parts_of(weights: Sequence[Named], rows: slice) -> list[Part]:
    """Rows `rows` of the concatenation of these weights."""
    parts, first = [], 0
    for name, outputs in weights:
        begin, end = max(rows.start - first, 0), min(rows.stop - first, outputs)
        if begin < end:
            parts.append(Part(name, outputs, slice(begin, end)))
        first += outputs
    return parts


class DecoderLayer(nn.Module):
    """Attention, then a dense MLP or experts, each applied to the normed residual stream and added to it.

    Both compute this rank's columns, or with numerics "fast" its summand; `attended` and `made` join them over the
    ranks.
    """

    def __init__(
        self,
        input_norm: RmsNorm,
        attention: Attention,
        attended: Join,
        post_norm: RmsNorm,
        mlp: Mlp | MoE,
        made: Join,
    ) -> None:
        super().__init__()
        self.input_norm, self.attention, self.post_norm, self.mlp = input_norm, attention, post_norm, mlp
        self.attended, self.made = attended, made

    def forward(self, batch: Batch, hidden: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        if batch.rows:  # without rows this rank only runs its experts for other ranks
            query = self.attention.fill(batch, self.input_norm(hidden), rotation, cache)
            hidden = batch.of_wanted(hidden)
            if len(query):
                hidden = hidden + self.attended(self.attention.attend(batch, query, cache, hidden.dtype))
        normed = self.post_norm(hidden)
        positions = batch.of_wanted(batch.rope_positions)
        made = self.mlp(normed, positions) if isinstance(self.mlp, MoE) else self.mlp(normed)
        out: Tensor = hidden + self.made(made)
        return out

    def fill(self, batch: Batch, hidden: Tensor, rotation: Rotation, cache: Tensor) -> None:
        """Only writes the rows' cache slots."""
        self.attention.fill(batch, self.input_norm(hidden), rotation, cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoader:
    """Reads `checkpoint` into modules of `dtype` on `device`. `exact`: with a fixed order of sums."""

    config: ModelConfig
    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device
    exact: bool
    sharing: Sharing
    prefix: str = "model."

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        numerics: str,
        device: torch.device | str,
        dtype: torch.dtype,
        sharing: Sharing | None = None,
    ) -> "LayerLoader":
        """`sharing`: this rank reads only its own slices."""
        device = torch.device(device)
        exact = numerics == "exact" and device.type == "cpu"
        return cls(
            config=config,
            checkpoint=checkpoint,
            dtype=dtype,
            device=device,
            exact=exact,
            sharing=sharing or Sharing(),
        )

    @property
    def shard(self) -> Shard:
        return self.sharing.shard

    @property
    def sums(self) -> bool:
        """Whether ranks of a tensor group add partial sums, which needs half as many collectives as exactness does."""
        return not self.exact and self.shard.tensors > 1

    @property
    def cache_width(self) -> int:
        """Values per token in this rank's cache of one layer."""
        heads = self.shard.heads(self.config.num_attention_heads)
        return self.config.cache_width(heads.stop - heads.start)

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        return self.checkpoint.tensor(self.prefix + name, dtype or self.dtype, shape, rows).to(self.device)

    def linear(self, *parts: Part, inputs: int, dtype: torch.dtype | None = None) -> Linear:
        """One product over concatenated slices of weights."""
        weights = [
            self.tensor(f"{part.name}.weight", part.outputs, inputs, dtype=dtype, rows=part.rows) for part in parts
        ]
        return make_linear(weights, exact=self.exact)

    def own(self, name: str, outputs: int) -> Part:
        """This rank's slice of a weight."""
        return Part(name, outputs, self.shard.own(outputs))

    def join(self, purpose: str, *, summed: bool) -> Join:
        """Joins the ranks' parts of hidden states."""
        return self.sharing.sum(purpose) if summed else self.sharing.columns(self.config.hidden_size, purpose)

    def output(self, name: str, inputs: int, own: slice, *, summed: bool) -> Linear:
        """A product that computes hidden states: this rank's slice, or (`summed`) its `own` inputs' summand of all."""
        if not summed:
            return self.linear(self.own(name, self.config.hidden_size), inputs=inputs)
        shape = (self.config.hidden_size, inputs)
        weight = self.checkpoint.tensor(f"{self.prefix}{name}.weight", self.dtype, shape, columns=own)
        return make_linear(weight.to(self.device), exact=self.exact)

    def norm(self, name: str, size: int, eps: float | None = None) -> RmsNorm:
        return RmsNorm(self.tensor(f"{name}.weight", size), self.config.rms_norm_eps if eps is None else eps)

    def embedding(self) -> Tensor:
        """[vocab, own columns of hidden]; they are joined like the outputs of other products."""
        shape, columns = (self.config.vocab_size, self.config.hidden_size), self.shard.own(self.config.hidden_size)
        name = self.prefix + "embed_tokens.weight"
        return self.checkpoint.tensor(name, self.dtype, shape, columns=columns).to(self.device)

    def head(self) -> Linear:
        """This rank's slice of the vocabulary."""
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        shape, rows = (self.config.vocab_size, self.config.hidden_size), self.shard.vocabulary(self.config.vocab_size)
        weight = self.checkpoint.tensor(name, self.dtype, shape, rows.slice(self.shard.tensor))
        return make_linear(weight.to(self.device), exact=self.exact)

    def layer(self, number: int) -> DecoderLayer:
        hidden, moe, name = self.config.hidden_size, self.config.is_moe_layer(number), f"layers.{number}."
        return DecoderLayer(
            self.norm(name + "input_layernorm", hidden),
            self._attention(name + "self_attn."),
            self.join("attention outputs", summed=self.sums),
            self.norm(name + "post_attention_layernorm", hidden),
            self._moe(number, name + "mlp.") if moe else self._mlp(name + "mlp.", self.config.intermediate_size),
            self.join("layer outputs", summed=self._moe_sums if moe else self.sums),
        )

    @property
    def _moe_sums(self) -> bool:
        """False with several data groups and spread experts: then outputs go to the ranks that own the columns."""
        return self.sums and not (self.shard.spread and self.shard.datas > 1)

    def _attention(self, name: str) -> Attention:
        config, rank = self.config, self.config.q_lora_rank
        heads, size = self.shard.heads(config.num_attention_heads), config.v_head_dim
        values = config.num_attention_heads * size
        return Attention(
            config,
            down=self._down(name),
            query_norm=self.norm(name + "q_a_layernorm", rank, LATENT_NORM_EPS) if rank else None,
            query_up=self.linear(self._queries(name + "q_b_proj"), inputs=rank) if rank else None,
            latent_norm=self.norm(name + "kv_a_layernorm", config.kv_lora_rank, LATENT_NORM_EPS),
            form=make_form(config, self._latent_up(name), HEAD_TILE if self.exact else None),
            heads=None if self.sums else self.sharing.columns(values, "heads", unit=size),
            output=self.output(name + "o_proj", values, slice(heads.start * size, heads.stop * size), summed=self.sums),
        )

    def _down(self, name: str) -> SharedProduct:
        """Latents, split over the ranks as one range of outputs.

        Without low-rank queries, this rank's queries come first.

        With numerics "fast" every rank computes all latents: they are few, and that saves a collective.
        """
        config, rank = self.config, self.config.q_lora_rank
        key = (name + "kv_a_proj_with_mqa", config.head_dim_latent)
        low = [(name + "q_a_proj", rank), key] if rank else [key]
        total = sum(outputs for _, outputs in low)
        columns = (Sharing() if self.sums else self.sharing).columns(total, "latents")
        parts = parts_of(low, slice(0, total) if self.sums else columns.cut.slice(self.shard.tensor))
        own = [] if rank else [self._queries(name + "q_proj")]
        linear = self.linear(*own, *parts, inputs=config.hidden_size)
        return SharedProduct(linear, columns, own=sum(part.size for part in own))

    def _queries(self, name: str) -> Part:
        heads, size = self.shard.heads(self.config.num_attention_heads), self.config.qk_head_dim
        return Part(name, self.config.num_attention_heads * size, slice(heads.start * size, heads.stop * size))

    def _latent_up(self, name: str) -> Tensor:
        """This rank's heads of kv_b_proj: [heads, latent, nope + v]."""
        config = self.config
        size = config.qk_nope_head_dim + config.v_head_dim
        heads = self.shard.heads(config.num_attention_heads)
        shape = (config.num_attention_heads * size, config.kv_lora_rank)
        rows = slice(heads.start * size, heads.stop * size)
        weight = self.tensor(name + "kv_b_proj.weight", *shape, dtype=torch.float32, rows=rows).view(
            heads.stop - heads.start, size, -1
        )
        return weight.transpose(1, 2).contiguous()

    def _mlp(self, name: str, width: int, *, summed: bool | None = None) -> Mlp:
        """An MLP, split over the tensor group."""
        summed = self.sums if summed is None else summed
        gate_up = self.linear(
            self.own(name + "gate_proj", width), self.own(name + "up_proj", width), inputs=self.config.hidden_size
        )
        down = self.output(name + "down_proj", width, self.shard.own(width), summed=summed)
        return Mlp(gate_up, down, None if summed else self.sharing.columns(width, "inner activations"))

    def _whole_mlp(self, name: str, width: int) -> Mlp:
        hidden = self.config.hidden_size
        gate_up = self.linear(Part(name + "gate_proj", width), Part(name + "up_proj", width), inputs=hidden)
        return Mlp(gate_up, self.linear(Part(name + "down_proj", hidden), inputs=width))

    def _moe(self, number: int, name: str) -> MoE:
        config = self.config
        routed, width = config.n_routed_experts, config.moe_intermediate_size
        router = Router(
            config,
            self.linear(Part(name + "gate", routed), inputs=config.hidden_size, dtype=torch.float32),
            self.tensor(name + "gate.e_score_correction_bias", routed, dtype=torch.float32),
        )
        shared_width = config.n_shared_experts * width
        summed = self._moe_sums
        shared = self._mlp(name + "shared_experts.", shared_width, summed=summed) if shared_width else None
        if not self.shard.spread:
            slices = {expert: self._mlp(f"{name}experts.{expert}.", width) for expert in range(routed)}
            inner = None if summed else self.sharing.columns(width, "inner activations")
            return MoE(router, Experts(slices, inner), shared, LocalDispatch())
        experts = Experts({})
        spread = SpreadExperts(
            number, self.shard, routed, lambda e: self._whole_mlp(f"{name}experts.{e}.", width), experts.use,
            self.device,
        )  # fmt: skip
        slots = routed + self.shard.redundant
        dispatch = (
            MaskedDispatch(self.sharing, slots) if summed else expert_dispatch(self.sharing, config.hidden_size, slots)
        )
        return MoE(router, experts, shared, dispatch, spread)
