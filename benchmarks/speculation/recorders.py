"""Depth policies that record instead of deciding well: what every place of a text drafts, and what rounds take.

A text does not depend on its drafts, so what would have been accepted at any place is known once it has been drafted
at every place: whatever policy is simulated over such a recording fares exactly as it would have on the engine.
"""

import random
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.timed_batches import BatchLLM
from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.engine.round_timer import RoundTimer
from outrider.workers.types.rounds.draft_plan import DraftPlan
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import RUNNING, Round, Verdict
from outrider.workers.types.rounds.sequence import Sequence

DEPTH = 8
_LEADS_PER_UNIT = 32  # a lead is kept as a byte: log(1 + lead) in steps of 1/32
ROUND_COLUMNS = (
    "sequences", "rows", "context", "rows_context",  # read by the round; context: tokens, summed over its sequences
    "steps", "drafts", "followed",  # made after it: the deepest draft, all drafts, and tokens that the drafter took in
    "round_s", "draft_s",
)  # fmt: skip


def install(llm: BatchLLM, policy: DepthPolicy) -> None:
    """Lets `policy` set the depths of an engine in this process."""
    engine: Any = llm._host.engine
    engine._depth = policy
    engine._scheduler._composer._plans = policy.plans
    engine._scheduler._residents._planner = policy
    engine.times = RoundTimer(time.thread_time, overlapping=False)  # not what others take of a shared machine


class TextRecorder(DepthPolicy):
    """Drafts `DEPTH` tokens at every place and verifies none of them."""

    def __init__(self) -> None:
        super().__init__(DEPTH)
        self._tokens: dict[int, list[int]] = defaultdict(list)
        self._drafts: dict[int, dict[int, Drafts]] = defaultdict(dict)

    def admit(self, sequence: Sequence, together: int) -> None:
        self.plans[sequence.sequence_id] = DraftPlan(DEPTH, follows=True)

    def observe(
        self, round: Round, verdict: Verdict, round_s: float, draft_s: float, drafts: Mapping[int, Drafts]
    ) -> dict[int, list[int]]:
        ends = verdict.token_offsets.tolist()
        for s, sequence_id in enumerate(round.sequence_ids.tolist()):
            self._tokens[sequence_id] += verdict.token_ids[ends[s] : ends[s + 1]].tolist()
        for sequence_id, own in drafts.items():
            if len(own) == DEPTH:
                self._drafts[sequence_id][len(self._tokens[sequence_id])] = own
        return {}

    def recorded(self) -> list[NDArray[np.uint8]]:
        """For each sequence, by place: how many leading drafts are the text's own, then their leads, [n, 1 + DEPTH]."""
        return [_places(self._tokens[sequence_id], drafts) for sequence_id, drafts in self._drafts.items()]


def _places(tokens: list[int], drafts: dict[int, Drafts]) -> NDArray[np.uint8]:
    rows = []
    for place in sorted(drafts):
        following = tokens[place : place + DEPTH]
        if len(following) == DEPTH:
            made = drafts[place]
            wrong = (n for n, token in enumerate(made.token_ids) if token != following[n])
            rows.append([next(wrong, DEPTH), *map(_as_byte, made.confidences)])
    return np.array(rows, dtype=np.uint8).reshape(-1, 1 + DEPTH)


def _as_byte(lead: float) -> int:
    return min(round(_LEADS_PER_UNIT * float(np.log1p(max(lead, 0.0)))), 255)


def leads(recorded: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The leads in a recording, [n, DEPTH]."""
    values: NDArray[np.float64] = np.expm1(recorded[:, 1:] / _LEADS_PER_UNIT)
    return values


class RoundRecorder(DepthPolicy):
    """Drafts and verifies by chance, so that every kind of round occurs beside every other."""

    def __init__(self, seed: int) -> None:
        super().__init__(DEPTH)
        self._rng = random.Random(seed)
        self._deepest = 0
        self._rows: list[list[float]] = []

    def admit(self, sequence: Sequence, together: int) -> None:
        self.plans[sequence.sequence_id] = self._next_plan()

    def _next_plan(self) -> DraftPlan:
        depth = self._rng.choice((self._deepest, self._deepest, self._rng.randint(0, self._deepest)))
        return DraftPlan(depth, follows=True)

    def observe(
        self, round: Round, verdict: Verdict, round_s: float, draft_s: float, drafts: Mapping[int, Drafts]
    ) -> dict[int, list[int]]:
        """Verifies the same number of each sequence, or each its own, in turn of chance."""
        rows = np.diff(round.query_offsets)
        if (rows == round.sample_counts).all():
            steps = np.where(verdict.finish == RUNNING, round.draft_steps, 0)
            contexts = round.starts + rows
            self._rows.append(
                [
                    round.sequences, round.rows, contexts.sum(), (contexts * rows).sum(),
                    steps.max(), steps.sum(), verdict.accepted_rows.sum(), round_s, draft_s,
                ]
            )  # fmt: skip
        self._deepest = self._rng.choice((0, 0, 0, 0, *range(1, DEPTH + 1)))
        self.plans.update({sequence_id: self._next_plan() for sequence_id in self.plans})
        most, alike = self._rng.randint(0, DEPTH), self._rng.random() < 0.5
        return {
            sequence_id: own.token_ids[: most if alike else self._rng.randint(0, most)]
            for sequence_id, own in drafts.items()
        }

    def recorded(self) -> NDArray[np.float32]:
        """[n, ROUND_COLUMNS], in the order in which they ran."""
        return np.array(self._rows, dtype=np.float32).reshape(-1, len(ROUND_COLUMNS))
