"""Every collective of a round: purpose, group, count and bytes. Pure.

`numerics: exact` splits only output dimensions, so inputs of a product are gathered from other ranks first. `fast` sums
over ranks (all-reduce), except outputs of experts that are spread over data groups. Purposes have the names that ranks
report for what they exchange; tests/exchanged.py computes one rank's exchange independently, and a test compares both.
"""

from dataclasses import dataclass

from outrider.cluster.planning.efficiency import Workload
from outrider.cluster.planning.split import Split
from outrider.workers.parallel.slices import Cut
from outrider.workers.types.model.model_shapes import Shapes

GATHER, REDUCE, EXCHANGE = "gather", "reduce", "exchange"
_ID, _SIZE = 4, 8  # bytes of an expert's id, of a count


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """`bytes`: what one rank contributes: its part of a gather, the complete tensor of a reduce, what it is expected to
    send in an exchange."""

    purpose: str
    kind: str
    group: str  # "tensor" or "stage"
    bytes: float
    count: float = 1


@dataclass(frozen=True)
class RoundShape:
    """The rows of one data group in one round, and the element size."""

    shapes: Shapes
    split: Split
    workload: Workload
    rows: float

    @property
    def exact(self) -> bool:
        return self.workload.numerics == "exact"

    def columns(self, size: int) -> float:
        """Bytes of one rank's column slice of `rows` rows; columns of an FP8 block stay together."""
        block = self.shapes.model.quantization_block
        return self.rows * Cut(size, self.split.tensor, block[0] if block else 1).widest * self.shapes.value_bytes

    def attention(self) -> list[Collective]:
        """Collectives of one attention layer."""
        model, split = self.shapes.model, self.split
        if split.tensor == 1:
            return []
        if not self.exact:
            return [self._reduce("attention outputs")]
        own_heads = model.num_attention_heads // split.tensor * model.v_head_dim
        latents = (model.q_lora_rank or 0) + model.head_dim_latent
        return [
            _gather("latents", self.columns(latents)),
            _gather("heads", self.rows * own_heads * self.shapes.value_bytes),
            _gather("attention outputs", self.columns(model.hidden_size)),
        ]

    def dense(self) -> list[Collective]:
        return self._mlp(self.columns(self.shapes.model.intermediate_size))

    def experts(self) -> list[Collective]:
        """Collectives of one layer with experts."""
        model = self.shapes.model
        if self.split.spread:
            shared = self._mlp(self.columns(model.n_shared_experts * model.moe_intermediate_size))
            if not model.n_shared_experts or not self.exact:
                shared = [one for one in shared if one.purpose != "inner activations"]
            return [*self._dispatch(), *shared]
        widths = [model.moe_intermediate_size, model.n_shared_experts * model.moe_intermediate_size]
        pairs = model.num_experts_per_tok + (model.n_shared_experts > 0)
        return self._mlp(pairs * max(self.columns(width) for width in widths if width))

    def _mlp(self, inner: float) -> list[Collective]:
        if self.split.tensor == 1:
            return []
        if not self.exact:
            return [self._reduce("layer outputs")]
        return [
            _gather("inner activations", inner),
            _gather("layer outputs", self.columns(self.shapes.model.hidden_size)),
        ]

    def _dispatch(self) -> list[Collective]:
        """Sends a row once to each rank of another data group with one of its experts. Outputs return by columns."""
        if self.split.data == 1 and not self.exact:
            return []  # every rank has the rows, and the all-reduce sums
        if self.split.data > 1 and self.workload.sends_copies:
            return self._copies()
        model, split, size = self.shapes.model, self.split, self.shapes.value_bytes
        others = split.data - 1
        packet = model.hidden_size * size + model.num_experts_per_tok * _ID
        rows = [
            Collective(purpose="counts of rows", kind=GATHER, group="stage", bytes=split.stage_size * _SIZE),
            _exchange("rows to experts", self.rows * others * self._rank_probability() * packet),
        ]
        pairs = self.rows * model.num_experts_per_tok  # of a data group; each of its ranks gets its columns of all
        outputs = pairs * model.hidden_size * size / split.tensor * (1 - 1 / split.stage_size)
        return [*(rows if others else []), _exchange("expert outputs", outputs)]

    def _rank_probability(self) -> float:
        """Probability that a row chose an expert of a given rank, if all experts are equally likely."""
        model = self.shapes.model
        own = model.n_routed_experts / self.split.stage_size
        missed = 1.0
        for n in range(model.num_experts_per_tok):
            missed *= max(0.0, 1 - own / (model.n_routed_experts - n))
        return 1 - missed

    def _copies(self) -> list[Collective]:
        """Sends a row once per chosen expert, in 8 bits if weights are. A 16-bit output returns for each."""
        model, split = self.shapes.model, self.split
        pairs = self.rows / split.tensor * model.num_experts_per_tok * (1 - 1 / split.stage_size)
        narrow = 1 + 4 / 128 if self.shapes.quantised else self.shapes.value_bytes
        return [
            _exchange("rows to experts", pairs * model.hidden_size * narrow),
            _exchange("expert outputs", pairs * model.hidden_size * self.shapes.value_bytes),
        ]

    def embedding(self) -> list[Collective]:
        if self.split.tensor == 1:
            return []
        return [_gather("embeddings", self.columns(self.shapes.model.hidden_size))]

    def head(self, group: str) -> list[Collective]:
        """Gathers logits of `rows` rows, from all data groups at the sampler ("stage") or within a group ("tensor")."""
        if self.split.group_size(group) == 1:
            return []
        part = self.rows * Cut(self.shapes.model.vocab_size, self.split.tensor).widest * 4
        return [Collective(purpose="logits", kind=GATHER, group=group, bytes=part)]

    def _reduce(self, purpose: str) -> Collective:
        whole = self.rows * self.shapes.model.hidden_size * self.shapes.value_bytes
        return Collective(purpose=purpose, kind=REDUCE, group="tensor", bytes=whole)


def _gather(purpose: str, part: float) -> Collective:
    return Collective(purpose=purpose, kind=GATHER, group="tensor", bytes=part)


def _exchange(purpose: str, sent: float) -> Collective:
    return Collective(purpose=purpose, kind=EXCHANGE, group="stage", bytes=sent)
