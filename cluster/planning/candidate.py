"""The figures of one split of a model over a fleet: memory of each stage, whether it fits, round time. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from outrider.cluster.planning.collectives import Collective, RoundShape
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware
from outrider.cluster.planning.memory import StageMemory, stage_memory
from outrider.cluster.planning.split import Split
from outrider.cluster.planning.timing import Clock, LayerTime, QueryRows
from outrider.workers.parallel.stages import split_by_cost
from outrider.workers.types.model.model_shapes import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's share. Ranges are (first, one past the last). Experts are those of the initial placement."""

    rank: int
    node: int
    device: int
    stage: int
    data: int
    tensor: int
    layers: tuple[int, int]
    heads: tuple[int, int]
    experts: tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A split and a workload, from which all figures are computed."""

    shapes: Shapes
    split: Split
    workload: Workload
    fleet: Hardware
    efficiency: Efficiency

    @property
    def weights_in_memory(self) -> str:
        """Weight dtype of linear layers in memory. FP8 if the kernels support it (workers/model/gpu/weights.py)."""
        if self.shapes.quantised:
            return "fp8"
        return "float32" if self.shapes.value_bytes == 4 else "bfloat16"

    @property
    def resolved(self) -> "Candidate":
        """The plan as GPU ranks run it: tensor groups use all-reduce. Follows workers/loading/resolved_config.py."""
        if self.split.tensor == 1:
            return self
        return replace(self, workload=replace(self.workload, numerics="fast"))

    def at(self, concurrency: int) -> "Candidate":
        return replace(self, workload=replace(self.workload, concurrency=concurrency))

    def by_drafts(self, most: int = 6) -> "list[Candidate]":
        """This plan with 0, 1, ... drafts per round; only 0 if the model has no MTP module."""
        depths = range(1 + most if self.shapes.model.num_nextn_predict_layers else 1)
        return [replace(self, workload=replace(self.workload, draft_steps=steps)) for steps in depths]

    @cached_property
    def clock(self) -> Clock:
        return Clock(self.shapes, self.split, self.workload, self.fleet, self.efficiency)

    @cached_property
    def lanes(self) -> int:
        """Micro-batches in flight: one per stage so that no stage idles, but not more than sequences."""
        return min(self.split.pipeline, self.sequences_of_group)

    @property
    def sequences_of_group(self) -> int:
        """Sequences in flight in the busiest data group."""
        return -(-self.workload.concurrency // self.split.data)

    @cached_property
    def rows(self) -> QueryRows:
        """The rows of one lane's decode round."""
        sequences = self.sequences_of_group / self.lanes
        return QueryRows(
            rows=sequences * self.workload.rows_per_sequence,
            sequences=sequences,
            context=self.workload.context,
            busy_groups=min(self.split.data, self.workload.concurrency),
        )

    def layer_times(self, rows: QueryRows) -> list[LayerTime]:
        """The time of each layer. There are only two types of layers."""
        kinds = {moe: self.clock.layer(rows, moe=moe) for moe in {self.shapes.moe(layer) for layer in self.layers}}
        return [kinds[self.shapes.moe(layer)] for layer in self.layers]

    @property
    def layer_launches(self) -> int:
        """Kernel launches of a round: those of all layers, and five for embedding, first norm, head and sampling."""
        kind = {"dispatched": self.split.dispatches, "peers": self.clock.accesses_peers(self.rows)}
        return sum(self.efficiency.layer_launches(moe=self.shapes.moe(layer), **kind) for layer in self.layers)

    @property
    def layers(self) -> range:
        return range(self.shapes.model.num_hidden_layers)

    @cached_property
    def draft_s(self) -> float:
        return self.clock.drafts(self.rows, self.workload.draft_steps)

    @cached_property
    def layer_splits(self) -> tuple[tuple[int, int], ...]:
        """Layers of each stage, balanced by modelled time. The first stage embeds and drafts, the last has the head."""
        costs = [time.total for time in self.layer_times(self.rows)]
        first = self.clock.embedding(self.rows) + self.draft_s
        return split_by_cost(costs, self.split.pipeline, first, self.clock.head(self.rows))

    @cached_property
    def memories(self) -> list[StageMemory]:
        device = self.fleet.gpu.memory_bytes
        return [
            stage_memory(self.shapes, self.split, self.workload, self.efficiency, device, stage, range(*bounds))
            for stage, bounds in enumerate(self.layer_splits)
        ]

    @property
    def cache_tokens_of_group(self) -> int:
        """Cache capacity of one data group in tokens, limited by the stage with the smallest cache."""
        return min(memory.cache_tokens for memory in self.memories)

    @property
    def cache_tokens(self) -> int:
        return self.cache_tokens_of_group * self.split.data

    @property
    def longest_context(self) -> int:
        return min(self.cache_tokens_of_group, self.shapes.model.max_position_embeddings)

    @property
    def most_sequences(self) -> int:
        """Maximum number of sequences of the workload's context length."""
        return self.cache_tokens_of_group // self.workload.context * self.split.data

    @property
    def wanted_tokens(self) -> int:
        """Cache tokens that a data group needs for its share of the sequences in flight."""
        return self.sequences_of_group * self.workload.context

    @property
    def tightest(self) -> tuple[int, float]:
        """The stage that needs the most memory, and the bytes that it needs."""
        needed = [memory.needed(self.wanted_tokens) for memory in self.memories]
        return needed.index(max(needed)), max(needed)

    @property
    def bytes_missing(self) -> float:
        return max(0.0, self.tightest[1] - self.fleet.gpu.memory_bytes)

    @property
    def fits(self) -> bool:
        return not self.bytes_missing and self.split.world_size <= self.fleet.size

    def stage_parts(self, rows: QueryRows, *, drafts: bool = True) -> list[dict[str, float]]:
        """Seconds of each stage, by part."""
        times = self.layer_times(rows)
        parts = [_sum_layers(times[first:end]) for first, end in self.layer_splits]
        parts[0]["embedding"] = self.clock.embedding(rows)
        parts[0]["drafts"] = self.draft_s if drafts else 0.0
        parts[-1]["head"] = self.clock.head(rows)
        for part in parts[:-1]:
            part["stage link"] = self.clock.stage_link(rows)
        return parts

    @cached_property
    def decode_parts(self) -> list[dict[str, float]]:
        return self.stage_parts(self.rows)

    @cached_property
    def round_s(self) -> float:
        """Time between two rounds of a sequence: the sum of all stages, or lanes x slowest stage if that is longer."""
        stages = [sum(parts.values()) for parts in self.decode_parts]
        return max(sum(stages), self.lanes * max(stages)) + self.efficiency.round_overhead_s

    @property
    def bubble_s(self) -> float:
        """Idle time of the slowest stage per round."""
        slowest = max(sum(parts.values()) for parts in self.decode_parts)
        return self.round_s - self.efficiency.round_overhead_s - self.lanes * slowest

    @property
    def token_s(self) -> float:
        """Time per output token of one sequence."""
        return self.round_s / self.workload.tokens_per_round

    @property
    def tokens_per_s_per_user(self) -> float:
        return 1 / self.token_s

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.workload.concurrency / self.token_s / self.split.world_size

    @cached_property
    def first_token_s(self) -> float:
        """Time to first token of a prompt as long as the context, in chunks, without other requests."""
        chunk = min(self.workload.max_num_batched_tokens, self.workload.context)
        rows = QueryRows(rows=chunk, sequences=1, context=self.workload.context / 2, busy_groups=1)
        once = sum(sum(parts.values()) for parts in self.stage_parts(rows, drafts=False))
        return (once + self.efficiency.round_overhead_s) * -(-self.workload.context // chunk)

    def collectives(self, rows: float, lanes: int = 1) -> list[tuple[int, Collective]]:
        """(stage, collective) for all collectives of one round with `rows` rows per data group, without drafts.

        `lanes`: 2 if a stage splits its rows in halves to overlap computation and communication.
        """
        shape = RoundShape(self.shapes, self.split, self.workload, rows / lanes)
        done: list[tuple[int, Collective]] = []
        for stage, (first, end) in enumerate(self.layer_splits):
            moe = sum(self.shapes.moe(layer) for layer in range(first, end))
            done += [(stage, replace(one, count=lanes)) for one in (shape.embedding() if stage == 0 else [])]
            counted = ((end - first, shape.attention()), (end - first - moe, shape.dense()), (moe, shape.experts()))
            done += [(stage, replace(one, count=lanes * count)) for count, kinds in counted if count for one in kinds]
        whole = replace(shape, rows=rows)
        return done + [
            (self.split.pipeline - 1, one) for one in whole.head("stage" if self.workload.one_sampler else "tensor")
        ]

    def ranks(self) -> Iterator[RankPlan]:
        model, split = self.shapes.model, self.split
        for rank in range(split.world_size):
            stage, within = divmod(rank, split.stage_size)
            data, tensor = divmod(within, split.tensor)
            node, device = divmod(rank, self.fleet.gpus_per_node)
            heads = model.num_attention_heads // split.tensor
            yield RankPlan(
                rank=rank,
                node=node,
                device=device,
                stage=stage,
                data=data,
                tensor=tensor,
                layers=self.layer_splits[stage],
                heads=(tensor * heads, (tensor + 1) * heads),
                experts=_share(model.n_routed_experts, within, split.expert)
                if split.spread
                else (0, model.n_routed_experts),
            )


def _share(size: int, part: int, parts: int) -> tuple[int, int]:
    return size * part // parts, size * (part + 1) // parts


def _sum_layers(times: list[LayerTime]) -> dict[str, float]:
    names = ("attention", "cache", "experts", "exchange", "overhead")
    return {name: float(sum(getattr(time, name) for time in times)) for name in names}
