"""A rank's share of every layer, and whether a model can be split that way. Pure and torch-free."""

from dataclasses import dataclass

from outrider.workers.config import ParallelConfig
from outrider.workers.experts.placement import IntArray, round_robin_table
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.parallel.slices import Cut
from outrider.workers.types.model.model_config import ModelConfig

_LEAST_OUTPUTS = 2  # per slice: a product with one output may sum in another order


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Outputs are split over the `tensors` ranks of a tensor group; heads and experts are never cut.

    `spread`: whole experts are distributed over all ranks of the stage; otherwise each is split over the tensor group.
    """

    tensor: int = 0
    tensors: int = 1
    data: int = 0
    datas: int = 1
    spread: bool = False
    unit: int = 1  # outputs that are not separated: the rows of an FP8 block
    redundant: int = 0  # with `spread`: slots beyond one per expert, over all ranks of the stage
    nodes: int = 1  # of the stage, if the placement of experts depends on them; else 1

    @classmethod
    def of(cls, parallel: ParallelConfig, rank: int, model: ModelConfig, redundant: int = 0, nodes: int = 1) -> "Shard":
        """`nodes`: pass it only if experts are placed by node (experts/nodes.py)."""
        place = Mesh.of(parallel).place(rank)
        return cls(
            tensor=place.tensor,
            tensors=parallel.tensor_parallel_size,
            data=place.data,
            datas=parallel.data_parallel_size,
            spread=parallel.expert_parallel_size > 1,
            unit=model.quantization_block[0] if model.quantization_block else 1,
            redundant=redundant,
            nodes=nodes,
        )

    @property
    def whole(self) -> bool:
        """Whether every layer is computed without other ranks."""
        return self.tensors == 1 and not self.spread

    def cut(self, outputs: int) -> Cut:
        return Cut(outputs, self.tensors, self.unit)

    def own(self, outputs: int) -> slice:
        return self.cut(outputs).slice(self.tensor)

    def vocabulary(self, outputs: int) -> Cut:
        """The head's split. It has no FP8 blocks, so `unit` does not apply."""
        return Cut(outputs, self.tensors)

    def heads(self, heads: int) -> slice:
        return Cut(heads, self.tensors).slice(self.tensor)

    def first_table(self, experts: int) -> IntArray:
        """The initial expert of each slot, with `spread`: [ranks, slots per rank]."""
        return round_robin_table(experts, experts + self.redundant, self.datas * self.tensors, self.nodes)

    def slots(self, experts: int) -> range:
        """This rank's slots, numbered over its whole stage."""
        each = (experts + self.redundant) // (self.datas * self.tensors)
        first = (self.data * self.tensors + self.tensor) * each
        return range(first, first + each)


def check_split(model: ModelConfig, parallel: ParallelConfig, redundant_experts: int = 0) -> None:
    """ValueError, naming the values, if the model cannot be split as `parallel` says."""
    tensors = parallel.tensor_parallel_size
    if model.num_attention_heads % tensors:
        raise ValueError(
            f"tensor_parallel_size={tensors} does not divide the model's {model.num_attention_heads} attention heads"
        )
    if parallel.expert_parallel_size > 1:
        _check_spread(model.n_routed_experts, parallel.expert_parallel_size, redundant_experts)
    for name, width in _inner_widths(model, parallel).items():
        _check_width(model, name, width, tensors)
    _check_slices(model, parallel)


def _check_spread(experts: int, ranks: int, redundant: int) -> None:
    if not experts:
        raise ValueError(f"expert_parallel_size={ranks}: the model has no experts to spread")
    if (experts + redundant) % ranks:
        more = f" and {redundant} redundant ones" if redundant else ""
        raise ValueError(f"expert_parallel_size={ranks} does not divide the model's {experts} experts{more}")
    if experts + redundant > experts * ranks:
        raise ValueError(
            f"num_redundant_experts={redundant} would put two copies of one of {experts} experts on one rank of {ranks}"
        )


def _inner_widths(model: ModelConfig, parallel: ParallelConfig) -> dict[str, int]:
    """The inner widths of the MLPs that are split, by the setting's name."""
    widths = {"intermediate_size": model.intermediate_size}
    if model.n_routed_experts and parallel.expert_parallel_size == 1:
        widths["moe_intermediate_size"] = model.moe_intermediate_size
    if model.n_routed_experts and model.n_shared_experts:
        widths["n_shared_experts x moe_intermediate_size"] = model.n_shared_experts * model.moe_intermediate_size
    return widths


def _check_width(model: ModelConfig, name: str, width: int, tensors: int) -> None:
    block = model.quantization_block[0] if model.quantization_block else 1
    if block > 1 and width % (block * tensors):
        raise ValueError(
            f"tensor_parallel_size={tensors} cuts the FP8 blocks of {block} rows in {name} = {width}:"
            f" it must divide its {-(-width // block)} blocks"
        )


def _check_slices(model: ModelConfig, parallel: ParallelConfig) -> None:
    tensors = parallel.tensor_parallel_size
    unit = model.quantization_block[0] if model.quantization_block else 1
    sizes = {
        "hidden_size": model.hidden_size,
        **_inner_widths(model, parallel),
        "q_lora_rank + kv_lora_rank": (model.q_lora_rank or 0) + model.head_dim_latent,
        "vocab_size": model.vocab_size,
    }
    for name, size in sizes.items():
        if tensors > 1 and min(Cut(size, tensors, unit).widths) < _LEAST_OUTPUTS:
            units = f", {-(-size // unit)} FP8 blocks," if unit > 1 else ""
            raise ValueError(f"tensor_parallel_size={tensors} is too many for {name} = {size}{units} of this model")
