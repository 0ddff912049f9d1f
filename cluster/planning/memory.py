"""The memory of a rank of each stage, and how many cache tokens fit in the rest. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.split import Split
from outrider.workers.types.model.model_shapes import Shapes

_NORMS = 4  # hidden-sized and latent-sized vectors per layer


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Bytes per rank of one stage. All ranks of a stage are equal."""

    weights: dict[str, float]  # by part
    buffers: float
    runtime: float
    cache_per_token: float  # per token of the rank's own data group
    device: float
    cache_share: float

    @property
    def weight_bytes(self) -> float:
        return sum(self.weights.values())

    @property
    def fixed(self) -> float:
        """All bytes except the cache."""
        return self.weight_bytes + self.buffers + self.runtime

    @property
    def cache_bytes(self) -> float:
        """Bytes for the cache: its share of the memory that the rest leaves free."""
        return max(0.0, (self.device - self.fixed) * self.cache_share)

    @property
    def cache_tokens(self) -> int:
        return int(self.cache_bytes // self.cache_per_token)

    def kept_free(self, tokens: int) -> float:
        """Bytes that the engine keeps free beside a cache of `tokens`."""
        return tokens * self.cache_per_token * (1.0 / self.cache_share - 1.0)

    def needed(self, tokens: int) -> float:
        """Bytes needed with a cache of `tokens`, those that stay free included."""
        return self.fixed + tokens * self.cache_per_token + self.kept_free(tokens)


def stage_memory(
    shapes: Shapes, split: Split, workload: Workload, efficiency: Efficiency, device: int, stage: int, layers: range
) -> StageMemory:
    """Memory of a rank that holds `layers`. The first stage also embeds and drafts, the last also has the head."""
    drafts = stage == 0 and workload.draft_steps > 0
    modules = shapes.modules if drafts else range(0)
    weights = _layers(shapes, split, workload, layers)
    if drafts:
        own = _layers(shapes, split, workload, modules)
        weights["drafter"] = sum(own.values()) + len(modules) * shapes.joiner * shapes.wide_bytes / split.tensor
    vocabulary = shapes.vocabulary * shapes.wide_bytes / split.tensor
    last = stage == split.pipeline - 1
    if stage == 0:
        weights["embedding"] = vocabulary
    if (last or drafts) and not (stage == 0 and shapes.model.tie_word_embeddings):
        weights["head"] = vocabulary
    return StageMemory(
        weights=weights,
        buffers=_buffers(shapes, split, workload, efficiency, last=last or drafts),
        runtime=efficiency.runtime_bytes,
        cache_per_token=(len(layers) + len(modules)) * shapes.cache_bytes(split.tensor),
        device=device,
        cache_share=efficiency.cache_share,
    )


def _layers(shapes: Shapes, split: Split, workload: Workload, layers: Sequence[int]) -> dict[str, float]:
    model, moe = shapes.model, sum(shapes.moe(layer) for layer in layers)
    repeated = shapes.repeated(split.tensor, summed=workload.numerics == "fast") * shapes.weight_bytes
    parts = {
        "attention": len(layers) * (shapes.attention_bytes + repeated) / split.tensor,
        "dense": (len(layers) - moe) * shapes.dense * shapes.weight_bytes / split.tensor,
        "experts": moe * experts_of_rank(shapes, split, workload) * shapes.expert * shapes.weight_bytes,
        "shared": moe * shapes.shared * shapes.weight_bytes / split.tensor,
        "router": moe * shapes.router * 4.0,  # float32
        "norms": len(layers) * _NORMS * model.hidden_size * shapes.value_bytes,
    }
    return {name: float(size) for name, size in parts.items() if size}


def experts_of_rank(shapes: Shapes, split: Split, workload: Workload) -> float:
    """Number of experts per layer on the rank with the most experts."""
    experts = shapes.model.n_routed_experts
    if not split.spread:
        return experts / split.tensor
    return -(-(experts + workload.redundant_experts) // split.expert)


def _buffers(shapes: Shapes, split: Split, workload: Workload, efficiency: Efficiency, *, last: bool) -> float:
    """Activations of the largest round, and its communication buffers."""
    model, rows, size = shapes.model, workload.max_num_batched_tokens, shapes.value_bytes
    inner = model.num_attention_heads * model.key_products / split.tensor
    stream = rows * size * (4 * model.hidden_size + 2 * inner + model.num_attention_heads * model.v_head_dim)
    pairs = float(rows * model.num_experts_per_tok)
    if split.spread:  # receives rows of all data groups and returns their outputs
        pairs = pairs * split.data / split.expert * efficiency.expert_imbalance + pairs / split.tensor
    exchanged = (
        pairs * size * (2 * model.hidden_size + 3 * model.moe_intermediate_size) if model.n_routed_experts else 0
    )
    logits = 8 * workload.max_num_seqs * workload.rows_per_sequence * model.vocab_size if last else 0
    return stream + exchanged + logits
