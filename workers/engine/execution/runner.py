"""Runs one stage's layers over a Round. Knows tensors; knows nothing of scheduling, sampling or other ranks."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.execution.lanes import Lanes
from outrider.workers.engine.execution.live_experts import LiveExperts
from outrider.workers.experts.orders import NOTHING
from outrider.workers.model.rows import Rows
from outrider.workers.model.stage_model import StageModel
from outrider.workers.parallel.collectives.collectives import ExchangeBrokenError
from outrider.workers.types.rounds.round import Round, most_of_a_group, share_of


class StageRunner:
    """Runs one stage of the model and counts the time spent."""

    def __init__(
        self,
        stage: StageModel,
        device: torch.device,
        data: int = 0,
        experts: LiveExperts | None = None,
        lanes: Lanes | None = None,
        *,
        waits: bool = True,
    ) -> None:
        """`data`: this rank's data group. `experts`: with expert parallelism. `lanes`: if exchanges can be overlapped.

        `waits`: `forward` synchronizes with the GPU, so that its seconds are right; else the reader of its result does.
        """
        self.stage = stage
        self.busy_s = 0.0
        self._began: float | None = None  # start of the round being computed
        self._device, self._data, self._experts, self._lanes = device, data, experts, lanes
        self._waits = waits and device.type == "cuda"
        self._answer = NOTHING

    def forward(self, round: Round, hidden: Tensor | None) -> tuple[Tensor, float]:
        """The hidden states after this stage's layers, [rows, hidden], and the seconds it took.

        `hidden` is None on the first stage, which embeds. The rows are those of this rank's data group. Raises
        ExchangeBrokenError with the round's number if another rank of the stage fails.
        """
        self._began = began = time.perf_counter()
        with RoundErrorContext(round):
            if self._experts is not None:
                self._answer = self._experts.apply(round.expert_order)
            hidden = self._run(round, hidden)
        if self._waits:
            torch.cuda.synchronize(self._device)
        took = time.perf_counter() - began
        self.busy_s += took
        self._began = None
        return hidden, took

    @property
    def returns_early(self) -> bool:
        """Whether `forward` returns while the device still runs the round."""
        return self._device.type == "cuda" and not self._waits

    @property
    def computing_s(self) -> float:
        """Seconds since the present round began on this rank; 0 between rounds. Thread-safe."""
        began = self._began
        return 0.0 if began is None else time.perf_counter() - began

    def _run(self, round: Round, hidden: Tensor | None) -> Tensor:
        rows = round_rows(share_of(round, self._data))
        if self._lanes is not None and self._lanes.wanted(round):
            return self._lanes.run(self.stage, rows, hidden)
        return self.stage.run(replace(rows, most_rows=most_rows(round)), hidden)

    def with_expert_answer(self, round: Round) -> Round:
        """The last round with this stage's answer to its expert command."""
        if not len(self._answer):
            return round
        return replace(round, expert_answer=np.append(round.expert_answer, self._answer))

    @property
    def held_up_s(self) -> float:
        """Longest delay of a round by an expert command."""
        return self._experts.held_up.seconds if self._experts is not None else 0.0


class RoundErrorContext:
    """Adds the round's number to ExchangeBrokenErrors raised in the block."""

    __slots__ = ("_round",)

    def __init__(self, round: Round) -> None:
        self._round = round

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ExchangeBrokenError):
            raise ExchangeBrokenError(f"{error} in round {self._round.round_id}") from error


def most_rows(round: Round) -> int | None:
    """Rows of the data group with the most; None with one group."""
    return most_of_a_group(round, np.diff(round.query_offsets)) if len(round.owners) else None


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
        first_slots=np.zeros(round.sequences, dtype=np.int64),
    )
