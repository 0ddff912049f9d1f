"""What deciding on drafts takes: everything that a round asks of DepthPolicy, with made-up rounds and verdicts.

Deciding is what must be known before a round can run: how deep to draft, which drafts to verify, whom to follow.
Learning is what is made of the round when it has run. Sequences decode at T=0.8 with drafts of which four in five
stand. Not every round sets depths, nor is each learned from at once, so means are told.
"""

import random
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from common import seconds

from outrider.workers.speculation.depth import DepthPolicy
from outrider.workers.speculation.patience import Patience, made_together
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.request import Request
from outrider.workers.types.round import RUNNING, Round, Verdict, ints, offsets
from outrider.workers.types.sampling_params import MAX_DRAFT_TOKENS, SamplingParams
from outrider.workers.types.sequence import Sequence

_PROMPT, _STANDS = 200, 0.8
_TOGETHER = 40  # rounds, more than depths hold for


class Decisions:
    """Plays rounds, and times the policy's part in them."""

    def __init__(self, sequences: int) -> None:
        self._policy, self._rng = DepthPolicy("auto", (8, 2)), random.Random(1)
        self._planned_s = 0.0  # what the setting of depths took of what it does with a round
        self._time_plans()
        params = SamplingParams(temperature=0.8)
        request = Request(request_id="", prompt_token_ids=(3,) * _PROMPT, params=params, seed=0)
        self._sequences = [
            Sequence(
                sequence_id=n, request=request, output_index=0, token_ids=[3] * _PROMPT,
                limit=1 << 30, draft_ceiling=MAX_DRAFT_TOKENS,
            )
            for n in range(sequences)
        ]  # fmt: skip
        self._verified = [0] * sequences
        self.took: dict[str, list[float]] = {"asked": [], "depths": [], "slots": [], "learning": []}

    def _time_plans(self) -> None:
        hearing = self._policy._hearing
        plan = hearing._plan

        def timed(*args: Any) -> None:
            self._planned_s = seconds(lambda: plan(*args))

        hearing._plan = timed  # type: ignore[method-assign]

    def round(self) -> None:
        depths: list[int] = []
        follows: list[bool] = []
        patience: list[Patience] = []

        def ask() -> None:
            depths.extend(map(self._policy.depth, self._sequences))
            follows.extend(map(self._policy.follows, self._sequences))
            patience.extend(map(self._policy.patience, self._sequences))

        self.took["asked"].append(seconds(ask))
        round, verdict = self._run(depths, follows)
        drafts = self._draft(depths, patience)
        round_s = 0.001 * len(depths) ** 0.5 * (1.0 + 0.15 * round.rows / len(depths)) * self._rng.uniform(1.0, 1.1)

        def learn() -> None:
            self._policy.time_of(round, round_s)
            self._policy.observe(round, verdict, round_s, 0.0001 * (1 + max(depths)), drafts)

        self._planned_s = 0.0
        learned_s = seconds(learn)
        self.took["depths"].append(self._planned_s)
        self.took["learning"].append(learned_s - self._planned_s)
        self.took["slots"].append(seconds(lambda: self._keep(drafts)))

    def _draft(self, depths: list[int], patience: list[Patience]) -> dict[int, Drafts]:
        leads = [[self._rng.expovariate(0.5) for _ in range(depth)] for depth in depths]
        made = zip(leads, made_together(patience, leads), strict=True)
        return {n: Drafts([5] * count, own[:count]) for n, (own, count) in enumerate(made) if count}

    def _keep(self, drafts: Mapping[int, Drafts]) -> None:
        kept = self._policy.worthwhile(drafts)
        self._verified = [len(kept.get(n, ())) for n in range(len(self._sequences))]

    def _run(self, depths: list[int], follows: list[bool]) -> tuple[Round, Verdict]:
        """What the engine would make of it."""
        count = len(self._sequences)
        accepted = [self._standing(drafts) for drafts in self._verified]
        rows, emitted = [1 + drafts for drafts in self._verified], [1 + stood for stood in accepted]
        round = Round(
            sequence_ids=ints(range(count)), query_offsets=offsets(rows), token_ids=ints([5] * sum(rows)),
            starts=ints([len(each.token_ids) for each in self._sequences]), sample_counts=ints(rows),
            draft_steps=ints(depths), upkeep=ints(follows), followed_from=ints([1] * count),
        )  # fmt: skip
        verdict = Verdict(
            token_offsets=offsets(emitted), token_ids=ints([5] * sum(emitted)), accepted_rows=ints(emitted),
            drafts_accepted=ints(accepted), finish=ints([RUNNING] * count),
        )  # fmt: skip
        for each, tokens in zip(self._sequences, emitted, strict=True):
            each.token_ids += [5] * tokens
        return round, verdict

    def _standing(self, drafts: int) -> int:
        return next((n for n in range(drafts) if self._rng.random() > _STANDS), drafts)


def decision_us(sequences: int, repeats: int = 600) -> dict[str, float]:
    """Microseconds of a round by part, once it has settled: the median of the means of some rounds in a row."""
    decisions = Decisions(sequences)
    for _ in range(repeats):
        decisions.round()
    return {part: 1e6 * _mean(took[repeats // 3 :]) for part, took in decisions.took.items()}


def deciding_us(parts: Mapping[str, float]) -> float:
    """All of them but learning."""
    return sum(parts.values()) - parts["learning"]


def _mean(values: list[float]) -> float:
    means = [fmean(values[first : first + _TOGETHER]) for first in range(0, len(values), _TOGETHER)]
    return median(means[: max(1, len(values) // _TOGETHER)])  # the last may be of few
