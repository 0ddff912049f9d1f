"""Maps a trainable module's parameters to checkpoint tensors, and selects those that are trained."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from outrider.workers.model.weights import Checkpoint
from outrider.workers.training.distill.layers import ExpertGroup
from outrider.workers.training.distill.module import TrainableMtp
from outrider.workers.types.model.model_config import ModelConfig

Parts = list[tuple[str, tuple[int, ...]]]


def checkpoint_parts(module: TrainableMtp, name: str, shape: tuple[int, ...]) -> Parts:
    """The checkpoint tensors that parameter `name` is stacked from, with their shapes; for most it is one."""
    prefix = f"model.layers.{module.config.num_hidden_layers}."
    owner, _, kind = name.rpartition(".")
    if not owner.startswith("mlp.groups."):
        return [(prefix + name, shape)]
    group = module.get_submodule(owner)
    assert isinstance(group, ExpertGroup), "experts come in groups"
    return [(f"{prefix}mlp.experts.{group.first + e}.{kind}.weight", shape[1:]) for e in range(shape[0])]


def is_trained(name: str, part: str) -> bool:
    """Whether parameter `name` is trained. "attention": attention, projections and norms, but no expert or router."""
    return part == "all" or not name.startswith("mlp.")


def freeze(module: nn.Module, part: str) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_trained(name, part))


def trained_tensors(module: TrainableMtp, part: str, value: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The trained tensors under the checkpoint's names; `value` gathers a partitioned parameter."""
    for name, parameter in module.named_parameters():
        if is_trained(name, part):
            whole = value(parameter)
            parts = checkpoint_parts(module, name, tuple(whole.shape))
            stacked = whole.unbind() if len(parts) > 1 or parts[0][1] != tuple(whole.shape) else [whole]
            yield from ((part_name, tensor) for (part_name, _), tensor in zip(parts, stacked, strict=True))


class Source:
    """Reads a module's tensors from a checkpoint, dequantised."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._config, self._checkpoint, self._dtype = config, checkpoint, dtype

    def parameter(self, module: TrainableMtp, name: str, shape: tuple[int, ...]) -> Tensor:
        parts = checkpoint_parts(module, name, shape)
        tensors = [self._checkpoint.tensor(part, self._dtype, size) for part, size in parts]
        return tensors[0].view(shape) if len(tensors) == 1 else torch.stack(tensors)

    def router_bias(self) -> Tensor:
        """float32 [experts]."""
        name = f"model.layers.{self._config.num_hidden_layers}.mlp.gate.e_score_correction_bias"
        return self._checkpoint.tensor(name, torch.float32, (self._config.n_routed_experts,))

    def embedding(self) -> Tensor:
        """[vocab, hidden]"""
        return self._checkpoint.tensor("model.embed_tokens.weight", self._dtype, self._vocabulary())

    def head(self) -> Tensor:
        """[vocab, hidden]"""
        name = "model.embed_tokens.weight" if self._config.tie_word_embeddings else "lm_head.weight"
        return self._checkpoint.tensor(name, self._dtype, self._vocabulary())

    def _vocabulary(self) -> tuple[int, int]:
        return self._config.vocab_size, self._config.hidden_size
