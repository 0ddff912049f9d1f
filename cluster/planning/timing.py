"""Duration of the parts of a round, by a roofline model: the larger of memory time and compute time. Pure.

Prefill, decode and verification differ only in numbers: rows, sequences and context. The rows of a round are those of
one data group; experts process the rows of all data groups.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from outrider.cluster.planning.collectives import EXCHANGE, GATHER, Collective, RoundShape
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware
from outrider.cluster.planning.memory import experts_of_rank
from outrider.cluster.planning.split import Split, span
from outrider.workers.types.model.model_shapes import Shapes, hit_share

PEER_ROWS = 64  # of a data group: outrider.kernels.gpu.dispatch.MOST_ROWS, which needs Triton


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRows:
    """The rows of one data group: query tokens, sequences, and cached tokens per sequence."""

    rows: float
    sequences: float
    context: float
    busy_groups: int  # data groups with this number of rows

    def halved(self) -> "QueryRows":
        return replace(self, rows=self.rows / 2, sequences=self.sequences / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Seconds of one layer on one rank, by part."""

    attention: float = 0.0  # linear layers
    cache: float = 0.0  # attention over the cache
    experts: float = 0.0  # or the dense MLP
    overhead: float = 0.0
    sharing: float = 0.0  # collectives of the tensor group, which do not overlap with computation
    dispatch: float = 0.0
    combine: float = 0.0
    hidden: float = 0.0  # part of dispatch and combine that overlaps with the other half of the batch

    @property
    def exchange(self) -> float:
        return self.sharing + self.dispatch + self.combine - self.hidden

    @property
    def total(self) -> float:
        return self.attention + self.cache + self.experts + self.overhead + self.exchange

    @property
    def before_experts(self) -> float:
        return self.attention + self.cache + (self.overhead + self.sharing) / 2

    @property
    def after_dispatch(self) -> float:
        return self.experts + (self.overhead + self.sharing) / 2


@dataclass(frozen=True)
class Clock:
    """Computes the durations for one model, split and fleet."""

    shapes: Shapes
    split: Split
    workload: Workload
    fleet: Hardware
    efficiency: Efficiency

    def layer(self, rows: QueryRows, *, moe: bool) -> LayerTime:
        """The time of one layer. With dispatch to experts, in two halves of the batch if that is faster."""
        peers = self.accesses_peers(rows)
        whole = self._layer(rows, moe=moe, peers=peers)
        if peers or not (self.efficiency.overlap and whole.dispatch and rows.sequences >= 2):
            return whole
        half = self._layer(rows.halved(), moe=moe)
        phases = [(half.before_experts, half.dispatch), (half.after_dispatch, half.dispatch)]
        phases += [(half.after_dispatch, half.combine), (half.before_experts, half.combine)]
        taken = sum(max(phase) for phase in phases)
        if taken >= whole.total:
            return whole
        both = LayerTime(**{name: 2 * getattr(half, name) for name in LayerTime.__dataclass_fields__})
        return replace(both, hidden=both.total - taken)

    def accesses_peers(self, rows: QueryRows) -> bool:
        """Whether GPUs write rows for experts to each other's memory (workers/parallel/peer_dispatch.py)."""
        within_node = span(self.split, "stage", self.fleet.gpus_per_node).nodes == 1
        return self.split.dispatches and within_node and rows.rows <= PEER_ROWS

    def _layer(self, rows: QueryRows, *, moe: bool, peers: bool = False) -> LayerTime:
        shape = self._round(rows)
        collectives = [*shape.attention(), *(shape.experts() if moe else shape.dense())]
        dispatch, combine = self.dispatch_combine_s(rows) if moe else (0.0, 0.0)
        return LayerTime(
            attention=self._attention_linears(rows),
            cache=self._cache(rows),
            experts=self._experts(rows) if moe else self._linear(self.shapes.dense, rows.rows),
            overhead=self._launches_s(moe=moe, peers=peers),
            sharing=self.exchange_s(one for one in collectives if one.group == "tensor"),
            dispatch=dispatch * self.efficiency.expert_imbalance,
            combine=combine * self.efficiency.expert_imbalance,
        )

    def _launches_s(self, *, moe: bool, peers: bool) -> float:
        share, dispatches = self.efficiency, self.split.dispatches
        launches = share.layer_launches(moe=moe, dispatched=dispatches, peers=peers)
        return launches * (share.launch_s if peers or not dispatches else share.eager_launch_s)

    def dispatch_combine_s(self, rows: QueryRows) -> tuple[float, float]:
        """Seconds of dispatch and combine in one layer, with evenly loaded experts."""
        stage = [one for one in self._round(rows).experts() if one.group == "stage"]
        back = [one for one in stage if one.purpose == "expert outputs"]
        return self.exchange_s(one for one in stage if one not in back), self.exchange_s(back)

    def _round(self, rows: QueryRows) -> RoundShape:
        return RoundShape(self.shapes, self.split, self.workload, rows.rows)

    def _linear(self, parameters: float, rows: float, weight_bytes: float | None = None) -> float:
        """A linear layer split over the tensor group."""
        width = self.shapes.weight_bytes if weight_bytes is None else weight_bytes
        return self._roofline(parameters * width / self.split.tensor, 2 * rows * parameters / self.split.tensor, width)

    def _roofline(self, bytes_read: float, operations: float, width: float) -> float:
        gpu, share = self.fleet.gpu, self.efficiency
        flops = gpu.flops(quantised=width < 2) * share.linear_flops
        return max(bytes_read / (gpu.bandwidth * share.weight_bandwidth), operations / flops)

    def _attention_linears(self, rows: QueryRows) -> float:
        repeated = self.shapes.repeated(self.split.tensor, summed=self.workload.numerics == "fast")
        narrow = self.shapes.down + self.shapes.heads - self.shapes.latent_up + repeated
        return self._linear(narrow, rows.rows) + self._linear(self.shapes.latent_up, rows.rows, self.shapes.wide_bytes)

    def _cache(self, rows: QueryRows) -> float:
        """Attention over the cache. Entries of a sequence are read once for all its rows and all heads of the rank."""
        model, gpu, share = self.shapes.model, self.fleet.gpu, self.efficiency
        read = rows.sequences * rows.context * self.shapes.cache_bytes(self.split.tensor)
        a_key = 2 * model.key_products  # operations per head
        operations = rows.rows * rows.context * a_key * model.num_attention_heads / self.split.tensor
        return max(
            read / (gpu.bandwidth * share.cache_bandwidth), operations / (gpu.bf16_flops * share.attention_flops)
        )

    def _experts(self, rows: QueryRows) -> float:
        """Routed experts, shared experts and the router. Only routed experts that a row chose are read."""
        model, shapes = self.shapes.model, self.shapes
        groups, ranks = (rows.busy_groups, self.split.expert) if self.split.spread else (1, self.split.tensor)
        heavier = self.efficiency.expert_imbalance if self.split.spread and self.split.data > 1 else 1.0
        tokens = rows.rows * groups
        read = experts_of_rank(shapes, self.split, self.workload) * hit_share(
            self._experts_in_all, model.num_experts_per_tok, tokens
        )
        operations = 2 * tokens * model.num_experts_per_tok * shapes.expert / ranks * heavier
        routed = self._roofline(read * shapes.expert * shapes.weight_bytes, operations, shapes.weight_bytes)
        router = self._roofline(shapes.router * 4, 2 * rows.rows * shapes.router, 4)
        return routed + router + self._linear(shapes.shared, rows.rows)

    @property
    def _experts_in_all(self) -> int:
        return self.shapes.model.n_routed_experts + (self.workload.redundant_experts if self.split.spread else 0)

    def head(self, rows: QueryRows, *, drafts: bool = False) -> float:
        """Projection to the vocabulary, and transfer of logits to the sampler. Drafts need no transfer."""
        group = "tensor" if drafts or not self.workload.one_sampler else "stage"
        gathered = self.exchange_s(self._round(rows).head(group))
        return self._linear(self.shapes.vocabulary, rows.rows, self.shapes.wide_bytes) + gathered

    def drafts(self, verified: QueryRows, steps: int) -> float:
        """Each MTP module runs over the accepted rows and previous drafts; the last module then drafts token by token.

        Each draft needs a head. Modules without a draft still process the accepted rows, for their caches. With a
        single module, only the last accepted row of each sequence is computed further than the cache.
        """
        if not steps:
            return 0.0
        one, modules = replace(verified, rows=verified.sequences), self.shapes.model.num_nextn_predict_layers
        behind = [step if step < steps else 0 for step in range(modules)]
        each = [replace(one, rows=one.rows * (self.workload.tokens_per_round + drafts)) for drafts in behind]
        fed = [self.module(one, each[0])] if modules == 1 else [self.module(rows, rows) for rows in each]
        passes = sum(fed) + max(0, steps - modules) * self.module(one, one)
        return passes + steps * self.head(one, drafts=True)

    def module(self, rows: QueryRows, fed: QueryRows) -> float:
        """One MTP module: writes cache entries of the rows `fed`, and computes the rest for `rows` only."""
        layer = self.layer(rows, moe=self.shapes.moe(self.shapes.model.num_hidden_layers))
        joined = self.exchange_s(self._round(fed).embedding())
        filled = self._cache_write(fed) - self._cache_write(rows)
        return layer.total + filled + joined + self._linear(self.shapes.joiner, fed.rows, self.shapes.wide_bytes)

    def _cache_write(self, rows: QueryRows) -> float:
        """Computation of a layer's cache entries."""
        latents = [one for one in self._round(rows).attention() if one.purpose == "latents"]
        return self._linear(self.shapes.down, rows.rows) + self.exchange_s(latents)

    def embedding(self, rows: QueryRows) -> float:
        return self.exchange_s(self._round(rows).embedding())

    def stage_link(self, rows: QueryRows) -> float:
        """Transfer of hidden states to the next stage. Each rank sends to its counterpart."""
        stride = self.split.stage_size
        near = self.fleet.gpus_per_node >= 2 * stride
        share, gpu = self.efficiency, self.fleet.gpu
        speed = gpu.link * share.link if near else gpu.network * share.network
        size = rows.rows * self.shapes.model.hidden_size * self.shapes.value_bytes
        return (share.link_latency_s if near else share.network_latency_s) + size / speed

    def exchange_s(self, collectives: Iterable[Collective]) -> float:
        return sum(one.count * self._collective(one) for one in collectives)

    def _collective(self, one: Collective) -> float:
        """Transfers over the link and over the network run in parallel."""
        lies, share, gpu = span(self.split, one.group, self.fleet.gpus_per_node), self.efficiency, self.fleet.gpu
        link, network = gpu.link * share.link, gpu.network * share.network
        far = lies.size - lies.near
        if one.kind == EXCHANGE:
            apart = one.bytes / max(lies.size - 1, 1)
            return share.exchange_latency_s + max(apart * (lies.near - 1) / link, apart * far / network)
        latency = share.network_latency_s if far else share.link_latency_s
        if one.kind == GATHER:
            return latency + max(one.bytes * (lies.near - 1) / link, one.bytes * far / network)
        at_once = latency + (lies.size - 1) * one.bytes / link  # every rank reads all other ranks' data and sums
        in_turn = 2 * latency + 2 * one.bytes * (
            (lies.near - 1) / lies.near / link + (1 - 1 / lies.nodes) / lies.near / network
        )
        return in_turn if far else min(at_once, in_turn)
