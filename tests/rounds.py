"""Runs tokens through stages by hand, in any chunking and company, without scheduler or engine."""

import ctypes
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.cpu.context import DRAW, Context
from outrider.workers.drafting.pairs import Pairs
from outrider.workers.experts.layer import ExpertLayer
from outrider.workers.model.batch import Batch
from outrider.workers.model.compiled.loading import CompiledLoader
from outrider.workers.model.compiled.model import CompiledCache, CompiledModules, CompiledStage
from outrider.workers.model.compiled.weight_cache import WeightCache
from outrider.workers.model.deepseek import Stage
from outrider.workers.model.moe import spread_experts
from outrider.workers.model.mtp import MtpModules
from outrider.workers.model.rows import Rows as FlatRows
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

BLOCK_SIZE = 16
# What the compiled kernels may make of a model's weights.
WEIGHTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"dtype": torch.bfloat16},
    "int8": {"quantization": "int8"},
}


@dataclass(frozen=True)
class Rows:
    """What one sequence contributes to a round: `tokens` at positions `start` and up, its cache in `blocks`."""

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    write_from: int = 0


def flat_rows(parts: Sequence[Rows], *, mtp: bool = False) -> FlatRows:
    """`parts` as one round. For MTP a row's tokens are those after it, and its cache slots one further."""
    lengths = [len(part.tokens) for part in parts]
    positions = np.concatenate([part.start + np.arange(len(part.tokens)) for part in parts])
    return FlatRows(
        token_ids=np.concatenate([np.asarray(part.tokens, dtype=np.int64) for part in parts]),
        rope_positions=positions,
        cache_positions=positions + int(mtp),
        query_offsets=np.cumsum([0, *lengths]),
        write_from=np.array([part.write_from for part in parts]),
        block_offsets=np.cumsum([0, *(len(part.blocks) for part in parts)]),
        block_ids=np.concatenate([np.asarray(part.blocks, dtype=np.int64) for part in parts]),
        first_slots=np.full(len(parts), int(mtp)),
    )


def make_batch(parts: Sequence[Rows], *, block_size: int = BLOCK_SIZE, mtp: bool = False) -> Batch:
    return Batch.of(flat_rows(parts, mtp=mtp), block_size)


class Decoder(ABC):
    """A whole model, run round by round."""

    @abstractmethod
    def hidden(self, *parts: Rows) -> Tensor:
        """One round: states after the final norm, [rows, hidden]."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor: ...

    @property
    @abstractmethod
    def expert_layers(self) -> Sequence[ExpertLayer]:
        """Those whose experts are spread over ranks."""

    @abstractmethod
    def cached(self, slots: Sequence[int]) -> Tensor:
        """What the caches of all layers hold in `slots`, bytes [layers, slots, bytes of a slot]."""

    def greedy(self, prompt: Sequence[int], count: int, blocks: Sequence[int]) -> list[int]:
        """`count` tokens after `prompt`, the prompt in one chunk and then token by token."""
        tokens = list(prompt)
        hidden = self.hidden(Rows(tokens, 0, blocks))
        for _ in range(count):
            tokens.append(int(self.logits(hidden[-1:]).argmax()))
            hidden = self.hidden(Rows(tokens[-1:], len(tokens) - 1, blocks))
        return tokens[len(prompt) :]


@dataclass
class Model(Decoder):
    """In PyTorch: all stages of a checkpoint, each with a cache of its own."""

    stages: list[Stage]
    block_size: int = BLOCK_SIZE
    routes: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        stages: int = 1,
        blocks: int = 64,
        block_size: int = BLOCK_SIZE,
        numerics: str = "exact",
        dtype: torch.dtype = torch.float32,
        sharing: Sharing | None = None,
    ) -> "Model":
        config, checkpoint = ModelConfig.load(path), Checkpoint(path)
        cuts = np.linspace(0, config.num_hidden_layers, stages + 1).astype(int).tolist()
        loaded = [
            Stage.load(
                config, checkpoint, range(first, end),
                numerics=numerics, device="cpu", dtype=dtype, block_size=block_size, sharing=sharing,
            )
            for first, end in itertools.pairwise(cuts)
        ]  # fmt: skip
        for stage in loaded:
            stage.allocate_cache(blocks)
        return cls(loaded, block_size)

    def hidden(self, *parts: Rows) -> Tensor:
        batch = make_batch(parts, block_size=self.block_size)
        hidden = self.stages[0].embed(batch)
        for stage in self.stages:
            hidden = stage(batch, hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.stages[-1].logits(hidden)

    @property
    def expert_layers(self) -> Sequence[ExpertLayer]:
        return spread_experts(*self.stages)

    def cached(self, slots: Sequence[int]) -> Tensor:
        layers = [layer for stage in self.stages for layer in stage.cache.layers]
        return torch.stack([layer[list(slots)].view(torch.uint8) for layer in layers])


@dataclass
class CompiledModel(Decoder):
    """On the compiled kernels: all stages of a checkpoint, and its MTP module where it was asked for."""

    stages: list[CompiledStage]
    loaders: list[CompiledLoader]
    context: Context
    block_size: int = BLOCK_SIZE
    module: CompiledModules | None = None

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        stages: int = 1,
        blocks: int = 64,
        block_size: int = BLOCK_SIZE,
        dtype: torch.dtype = torch.float32,
        quantization: str | None = None,
        draft_quantization: str | None = None,
        numerics: str = "exact",
        threads: int = 1,
        drafts: bool = False,
        head_ids: NDArray[np.int32] | None = None,
        sharing: Sharing | None = None,
        cache: WeightCache | None = None,
    ) -> "CompiledModel":
        config, checkpoint, context = ModelConfig.load(path), Checkpoint(path), Context(threads)
        own = {"dtype": dtype, "quantization": quantization, "block_size": block_size, "fast": numerics == "fast"}
        own |= {"sharing": sharing, "cache": cache, "draft_quantization": draft_quantization}
        loaders = [CompiledLoader(config, checkpoint, **own) for _ in range(stages)]  # type: ignore[arg-type]  # a table
        cuts = itertools.pairwise(np.linspace(0, config.num_hidden_layers, stages + 1).astype(int).tolist())
        loaded = [CompiledStage(context, own, range(*cut)) for own, cut in zip(loaders, cuts, strict=True)]
        module = CompiledModules(loaded[0], loaders[0], head_ids) if drafts else None
        for part in [*loaded, *([module] if module else [])]:
            part.allocate_cache(blocks)
        return cls(loaded, loaders, context, block_size, module)

    def hidden(self, *parts: Rows) -> Tensor:
        rows, hidden = flat_rows(parts), None
        for stage in self.stages:
            hidden = stage.run(rows, hidden)
        assert hidden is not None
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.stages[-1].head
        assert head is not None
        draws = np.zeros(len(hidden), dtype=DRAW)  # greedy: what is drawn is not looked at
        return self.context.sample(head, hidden.contiguous(), np.arange(len(hidden)), draws)[0]

    @property
    def expert_layers(self) -> Sequence[ExpertLayer]:
        return [layer for loader in self.loaders for layer in loader.expert_layers]

    def cached(self, slots: Sequence[int]) -> Tensor:
        return torch.cat([self._of_cache(stage.cache, slots) for stage in self.stages])

    def cached_pairs(self, slots: Sequence[int]) -> Tensor:
        """As `cached`, of the MTP module."""
        assert self.module is not None
        return self._of_cache(self.module.cache, slots)

    def _of_cache(self, cache: CompiledCache, slots: Sequence[int]) -> Tensor:
        size = cache.bytes_per_block // self.block_size // len(cache.addresses)
        read = [[ctypes.string_at(address + slot * size, size) for slot in slots] for address in cache.addresses]
        return torch.tensor([[list(slot) for slot in layer] for layer in read], dtype=torch.uint8)


def load_model(path: Path, kernels: str, **settings: Any) -> Model | CompiledModel:
    """In PyTorch ("torch"), or on the compiled kernels with WEIGHTS[kernels]."""
    if kernels == "torch":
        return Model.load(path, **settings)
    return CompiledModel.load(path, **WEIGHTS[kernels], **settings)


def load_mtp(path: Path, stage: Stage, *, blocks: int = 64, numerics: str = "exact") -> MtpModules:
    modules = MtpModules.load(
        ModelConfig.load(path), Checkpoint(path), stage,
        numerics=numerics, device="cpu", dtype=torch.float32, block_size=BLOCK_SIZE,
    )  # fmt: skip
    modules.allocate_cache(blocks)
    return modules


def slots_of(blocks: Sequence[int], tokens: int, block_size: int = BLOCK_SIZE) -> list[int]:
    """Where a sequence's first `tokens` are in the cache."""
    return [block * block_size + offset for block in blocks for offset in range(block_size)][:tokens]


def make_pairs(
    states: Tensor, tokens: Sequence[int], first: int, blocks: Sequence[int], *, sequence: int = 0, write_from: int = 0
) -> Pairs:
    """The pairs of a sequence's positions from `first` on, one for each of `states`."""
    end = first + len(states)
    return Pairs(
        sequence_ids=np.array([sequence]),
        lengths=np.array([len(states)]),
        token_ids=np.array(tokens[first + 1 : end + 1]),
        positions=np.arange(first, end),
        hidden=states,
        write_from=np.array([write_from]),
        first_slots=np.array([1]),
        tables=(np.array(blocks),),
    )


def relative_errors(got: Tensor, wanted: Tensor) -> Tensor:
    """Of each row, relative to its length."""
    return (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)


def random_tokens(count: int, vocab: int, seed: int) -> list[int]:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
