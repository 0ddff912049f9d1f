"""Runs one stage's layers over a Round. Knows tensors; knows nothing of scheduling, sampling or other ranks."""

import time
from typing import Protocol

import torch
from torch import Tensor

from outrider.workers.engine.round import Round
from outrider.workers.model.rows import Rows


class StageModel(Protocol):
    """Some layers of a model, with their cache, whichever path computes them."""

    @property
    def cache_bytes_per_block(self) -> int: ...

    def allocate_cache(self, num_blocks: int) -> None:
        """Make room for blocks 0..num_blocks-1. To be called once, before the first round."""
        ...

    def run(self, rows: Rows, hidden: Tensor | None) -> Tensor:
        """`hidden` [R, hidden], None on the first stage, which embeds -> [R, hidden]; the last stage's is normed."""
        ...


class StageRunner:
    """One stage of the model, and the time it has spent computing."""

    def __init__(self, stage: StageModel, device: torch.device) -> None:
        self.stage = stage
        self.busy_s = 0.0
        self._device = device

    def forward(self, round: Round, hidden: Tensor | None) -> tuple[Tensor, float]:
        """The hidden states after this stage's layers, [rows, hidden], and the seconds it took.

        `hidden` is None on the first stage, which embeds.
        """
        began = time.perf_counter()
        hidden = self.stage.run(round_rows(round), hidden)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        took = time.perf_counter() - began
        self.busy_s += took
        return hidden, took


def round_rows(round: Round) -> Rows:
    positions = round.positions
    return Rows(
        token_ids=round.token_ids,
        rope_positions=positions,
        cache_positions=positions,
        query_offsets=round.query_offsets,
        write_from=round.write_from,
        block_offsets=round.block_offsets,
        block_ids=round.block_ids,
        first_cache_position=0,
    )
