"""A pipeline without a model: its target says token + 1, so what should come out is known. Verdicts are real ones."""

from collections import deque

import numpy as np
import torch

from outrider.workers.engine.execution.pipeline import RoundResult
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.sampling.verify import verify_round
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray, Round, SampledRows, Verdict

VOCAB = 1000


class CountingPipeline:
    """Implements Pipeline. `lost_in_round`: the round whose verdict never comes, and `error` what is raised then."""

    def __init__(
        self,
        lanes: int = 1,
        lost_in_round: int | None = None,
        error: Exception | None = None,
        max_model_len: int = 10_000,
    ) -> None:
        self.lanes, self.returns_early = lanes, False
        self._max_model_len = max_model_len
        self.closed = False
        self.rounds: list[Round] = []
        self.prepared: list[StructuredOutputsParams] = []
        self.most_under_way = 0
        self._lost_in_round = lost_in_round
        self._error = error or EngineStoppedError("rank 1 (stage 1, layers 6..11) is gone or late")
        self._under_way: deque[Round] = deque()
        self._starts = SequenceStarts(())

    def dispatch(self, round: Round) -> None:
        flying = {s for other in self._under_way for s in other.sequence_ids.tolist()}
        assert flying.isdisjoint(round.sequence_ids.tolist()), "a sequence is in two rounds at once"
        self.rounds.append(round)
        self.prepared += round.prepares
        self._under_way.append(round)
        self.most_under_way = max(self.most_under_way, len(self._under_way))

    def collect(self) -> RoundResult:
        round = self._under_way.popleft()
        if len(self.rounds) - len(self._under_way) - 1 == self._lost_in_round:
            raise self._error
        self._starts.begin(round.begins)
        rows = SampledRows.of(round).rows
        verdict = verify_round(round, self._target(round, rows), self._starts, max_model_len=self._max_model_len)
        return RoundResult(verdict=verdict, hidden=torch.zeros(int(verdict.accepted_rows.sum()), 1))

    def announce(self, constraints: tuple[StructuredOutputsParams, ...]) -> None:
        self.prepared += constraints

    def close(self) -> None:
        assert not self._under_way, "a verdict was never collected: its sender would wait for ever"
        self.closed = True

    def _target(self, round: Round, rows: IntArray) -> IntArray:
        return np.asarray((round.token_ids[rows] + 1) % VOCAB)


class CountingDrafter:
    """Implements Drafter: right in two of three drafts. `broken`: raises instead."""

    def __init__(self, broken: bool = False) -> None:
        self.forgotten: list[int] = []
        self._broken = broken

    def draft(self, round: Round, verdict: Verdict, hidden: torch.Tensor) -> dict[int, Drafts]:
        if self._broken:
            raise RuntimeError("no drafts today")
        said, ends = verdict.token_ids.tolist(), verdict.token_offsets[1:].tolist()
        columns = zip(round.sequence_ids.tolist(), round.draft_steps.tolist(), ends, strict=True)
        return {s: self._drafts(said[end - 1], steps) for s, steps, end in columns if steps}

    def _drafts(self, last: int, steps: int) -> Drafts:
        return Drafts([(last + 1 + step + (step % 3 == 2)) % VOCAB for step in range(steps)], [9.0] * steps)

    def forget(self, sequence_ids: IntArray) -> None:
        self.forgotten += sequence_ids.tolist()
