"""Runs one stage's layers over a Round. Knows tensors; knows nothing of scheduling, sampling or other ranks."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.round import Round
from outrider.workers.model.batch import Batch
from outrider.workers.model.deepseek import Stage

_WIDTH_PER_THREAD = 512  # outputs of a layer
_VALUES_PER_THREAD = 8192  # of a round's hidden states


def compute_threads(hidden_size: int, rows: int, available: int) -> int:
    """Threads worth waking: a narrow layer on few rows is over before they are awake (scout: one beats two).

    How many there are changes no bit.
    """
    wanted = max(hidden_size // _WIDTH_PER_THREAD, hidden_size * rows // _VALUES_PER_THREAD)
    return max(1, min(available, wanted))


class StageRunner:
    """One stage of the model, and the time it has spent computing."""

    def __init__(self, stage: Stage, hidden_size: int, block_size: int, device: torch.device) -> None:
        self.stage = stage
        self.busy_s = 0.0
        self._hidden_size, self._block_size = hidden_size, block_size
        self._device = device
        self._threads = torch.get_num_threads()  # to be had

    @torch.inference_mode()
    def forward(self, round: Round, hidden: Tensor | None) -> tuple[Round, Tensor]:
        """The round with this stage's seconds added, and the hidden states after its layers, [rows, hidden].

        `hidden` is None on the first stage, which embeds.
        """
        began = time.perf_counter()
        torch.set_num_threads(compute_threads(self._hidden_size, round.rows, self._threads))  # the calling thread's
        batch = self._batch(round)
        hidden = self.stage.forward(batch, self.stage.embed(batch) if hidden is None else hidden)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        took = time.perf_counter() - began
        self.busy_s += took
        return replace(round, stage_s=np.append(round.stage_s, took)), hidden

    def _batch(self, round: Round) -> Batch:
        positions = round.positions
        return Batch.build(
            token_ids=round.token_ids,
            rope_positions=positions,
            cache_positions=positions,
            query_offsets=round.query_offsets,
            write_from=round.write_from,
            block_offsets=round.block_offsets,
            block_ids=round.block_ids,
            first_cache_position=0,
            block_size=self._block_size,
            device=self._device,
        )
