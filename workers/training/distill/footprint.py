"""The memory that training a module needs on every GPU, by part.

Computed from shapes on meta tensors, without allocating.

Pure, except for creating the module's meta tensors. DeepSpeed's memory is known exactly; activations are estimated
from the shapes that the backward pass needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from outrider.workers.model.weights import stored_tensors
from outrider.workers.training.distill.losses import CHUNK_VALUES
from outrider.workers.training.distill.module import TrainableMtp
from outrider.workers.training.distill.names import checkpoint_parts, is_trained
from outrider.workers.training.distill.settings import LIVE_PARAMETERS, TrainingSettings
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

_MASTER_BYTES, _MOMENT_BYTES = 4, 8  # a float32 copy of the weights, and AdamW's two moments


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A checkpoint tensor of the module."""

    name: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def elements(self) -> int:
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes on the GPU with the highest use, by part, and the sizes behind them."""

    world_size: int
    trained_elements: int
    partition_elements: int  # trained elements whose optimizer states are on one GPU
    gpu: dict[str, int]
    host: dict[str, int]  # host memory per GPU

    @property
    def gpu_bytes(self) -> int:
        return sum(self.gpu.values())


def module_shape(config: ModelConfig, group_size: int) -> TrainableMtp:
    """The module without its weights."""
    with torch.device("meta"):
        return TrainableMtp(config, group_size)


def tensor_shapes(module: TrainableMtp, trained: str) -> list[TensorShape]:
    """Every checkpoint tensor of the module. The router's bias, which is not a parameter, is left out."""
    return [
        TensorShape(name, size, is_trained(parameter_name, trained))
        for parameter_name, parameter in module.named_parameters()
        for name, size in checkpoint_parts(module, parameter_name, tuple(parameter.shape))
    ]


def check_checkpoint(shapes: list[TensorShape], checkpoint: Path) -> None:
    """OutriderError unless the checkpoint has every one of these tensors, in its shape."""
    stored = stored_tensors(checkpoint)
    for tensor in shapes:
        found = stored.get(tensor.name)
        if found is None or found.shape != tensor.shape:
            what = "is not there" if found is None else f"has shape {list(found.shape)}"
            raise OutriderError(f"{checkpoint}: {tensor.name} {what}, and training calls for {list(tensor.shape)}")


def footprint(config: ModelConfig, settings: TrainingSettings, world_size: int) -> Footprint:
    """The footprint of `settings` on `world_size` GPUs. ValueError if a step's windows cannot be split evenly."""
    settings.check_world(world_size)
    module = module_shape(config, settings.expert_group_size)
    shapes = tensor_shapes(module, settings.trained)
    trained = sum(tensor.elements for tensor in shapes if tensor.trained)
    frozen = sum(tensor.elements for tensor in shapes if not tensor.trained)
    partition = -(-trained // world_size)
    size = 4 if settings.dtype == "float32" else 2
    weights = _weights(settings, trained + frozen, world_size, size)
    states = partition * (_MOMENT_BYTES + (_MASTER_BYTES if size == 2 else 0))
    gradients = size * (trained if settings.zero_stage == 1 else partition)
    offloaded = settings.offload != "none"
    gpu = {
        "weights of the module": 0 if settings.offload == "all" else weights,
        "gradients": gradients,
        "optimizer states": 0 if offloaded else states,
        "gathered for use (ZeRO 3)": _gathered(module, settings, size),
        "embedding and head": 2 * config.vocab_size * config.hidden_size * size,
        "activations (estimate)": activation_bytes(config, settings, world_size),
        "logits of a chunk": 4 * min(CHUNK_VALUES, _starts(settings, world_size) * config.vocab_size) * 4,
    }
    host = {"optimizer states": states if offloaded else 0, "weights": weights if settings.offload == "all" else 0}
    return Footprint(
        world_size=world_size,
        trained_elements=trained,
        partition_elements=partition,
        gpu=gpu,
        host=host,
    )


def activation_bytes(config: ModelConfig, settings: TrainingSettings, world_size: int) -> int:
    """Bytes that a part's forward pass keeps for the backward pass, over all steps of the recursion."""
    return settings.depth * sum(_kept(config, settings, world_size))


def _kept(config: ModelConfig, settings: TrainingSettings, world_size: int) -> Iterator[int]:
    """Bytes that one step keeps. Norms keep their input in float32 and the result; products keep their input."""
    size = 4 if settings.dtype == "float32" else 2
    tokens, hidden, heads = _starts(settings, world_size), config.hidden_size, config.num_attention_heads
    norm = 4 + 4 + size
    yield tokens * hidden * (5 * norm + 2 * size)  # five norms over the residual stream, and the joined input
    low = (config.q_lora_rank or 0) + config.kv_lora_rank
    yield tokens * low * norm
    yield tokens * heads * (2 * config.qk_head_dim + 2 * config.v_head_dim) * size
    keys = settings.window + settings.depth
    yield tokens * heads * keys * (4 + 4 + size)  # scores, their softmax, and the softmax in the products' type
    if not config.is_moe_layer(config.num_hidden_layers):
        yield tokens * config.intermediate_size * 4 * size
        return
    yield tokens * config.num_experts_per_tok * 3 * hidden * size  # inputs and outputs; the rest is recomputed
    yield tokens * config.n_shared_experts * 4 * config.moe_intermediate_size * size


def _starts(settings: TrainingSettings, world_size: int) -> int:
    """Starts per GPU in one part of a step."""
    return settings.batch_rows // (world_size * settings.accumulate) * settings.window


def _weights(settings: TrainingSettings, elements: int, world_size: int, size: int) -> int:
    """With ZeRO 3, frozen weights are partitioned too."""
    return size * (-(-elements // world_size) if settings.zero_stage == 3 else elements)


def _gathered(module: TrainableMtp, settings: TrainingSettings, size: int) -> int:
    """The limit of gathered elements, or the two largest modules (one in use, one prefetched), or all of them."""
    if settings.zero_stage != 3:
        return 0
    owners: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        owner = name.rpartition(".")[0]
        owners[owner] = owners.get(owner, 0) + parameter.numel()
    return size * min(sum(owners.values()), max(LIVE_PARAMETERS, sum(sorted(owners.values())[-2:])))
