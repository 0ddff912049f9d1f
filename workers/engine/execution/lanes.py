"""Runs a round as two lanes: one lane computes while the other exchanges data with other ranks.

No bit changes, because rows are independent except for the cache entries of a sequence's earlier rows. On a GPU both
lanes share one compute stream; collectives run on their own stream.
"""

import contextlib
from functools import partial

import torch
from torch import Tensor

from outrider.workers.engine.execution.lane_rule import LaneRule, cut_of
from outrider.workers.model.rows import Rows
from outrider.workers.model.stage_model import StageModel
from outrider.workers.parallel.collectives.turns import LaneTurns
from outrider.workers.types.rounds.round import Round


class Lanes:
    """The two lanes of a stage, on one of its ranks. `rounds` counts the rounds that ran as two lanes."""

    def __init__(self, rule: LaneRule, turns: LaneTurns, data_groups: int, device: torch.device) -> None:
        self.rounds = 0
        self._rule, self._turns, self._data_groups, self._device = rule, turns, data_groups, device

    def wanted(self, round: Round) -> bool:
        """Whether to run the round as two lanes. `round` has the rows of all data groups."""
        return self._rule.two(round, self._data_groups)

    def run(self, stage: StageModel, rows: Rows, hidden: Tensor | None) -> Tensor:
        """The same as `stage.run`, in two lanes."""
        self.rounds += 1
        cut = cut_of(rows.query_offsets)
        first, second = (None, None) if hidden is None else (hidden[:cut], hidden[cut:])
        halves = self._turns.both(
            partial(stage.run, rows.between(0, cut), first, lane=0),
            partial(self._beside, self._stream(), stage, rows.between(cut, len(rows)), second),
        )
        return torch.cat(halves)

    def _stream(self) -> contextlib.AbstractContextManager[object]:
        """Context that selects the calling thread's CUDA stream in another thread."""
        if self._device.type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.current_stream(self._device))

    def _beside(
        self, stream: contextlib.AbstractContextManager[object], stage: StageModel, rows: Rows, hidden: Tensor | None
    ) -> Tensor:
        with stream:
            return stage.run(rows, hidden, lane=1)
