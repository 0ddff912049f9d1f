"""Runs tokens through stages by hand, in any chunking and company, without scheduler or engine."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outrider.workers.model.batch import Batch
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.deepseek import Stage
from outrider.workers.model.mtp import MtpModules
from outrider.workers.model.rows import Rows as FlatRows
from outrider.workers.model.weights import Checkpoint

BLOCK_SIZE = 16


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
        first_cache_position=int(mtp),
    )


def make_batch(parts: Sequence[Rows], *, block_size: int = BLOCK_SIZE, mtp: bool = False) -> Batch:
    return Batch.of(flat_rows(parts, mtp=mtp), block_size)


@dataclass
class Model:
    """All stages of a checkpoint, each with a cache of its own."""

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
    ) -> "Model":
        config, checkpoint = ModelConfig.load(path), Checkpoint(path)
        cuts = np.linspace(0, config.num_hidden_layers, stages + 1).astype(int).tolist()
        loaded = [
            Stage.load(
                config, checkpoint, range(first, end),
                numerics=numerics, device="cpu", dtype=dtype, block_size=block_size,
            )
            for first, end in itertools.pairwise(cuts)
        ]  # fmt: skip
        for stage in loaded:
            stage.allocate_cache(blocks)
        return cls(loaded, block_size)

    def hidden(self, *parts: Rows) -> Tensor:
        """One round: states after the final norm, [rows, hidden]."""
        batch = make_batch(parts, block_size=self.block_size)
        hidden = self.stages[0].embed(batch)
        for stage in self.stages:
            hidden = stage(batch, hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.stages[-1].logits(hidden)

    def greedy(self, prompt: Sequence[int], count: int, blocks: Sequence[int]) -> list[int]:
        """`count` tokens after `prompt`, the prompt in one chunk and then token by token."""
        tokens = list(prompt)
        hidden = self.hidden(Rows(tokens, 0, blocks))
        for _ in range(count):
            tokens.append(int(self.logits(hidden[-1:]).argmax()))
            hidden = self.hidden(Rows(tokens[-1:], len(tokens) - 1, blocks))
        return tokens[len(prompt) :]


def load_mtp(path: Path, stage: Stage, *, blocks: int = 64, numerics: str = "exact") -> MtpModules:
    modules = MtpModules.load(
        ModelConfig.load(path), Checkpoint(path), stage,
        numerics=numerics, device="cpu", dtype=torch.float32, block_size=BLOCK_SIZE,
    )  # fmt: skip
    modules.allocate_cache(blocks)
    return modules


def random_tokens(count: int, vocab: int, seed: int) -> list[int]:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
