"""What the depth policy takes of a round: everything that the engine asks of DepthPolicy, with made-up rounds.

Sequences decode at T=0.8 with drafts of which four in five stand, and each that ends makes room for another. Plans are
remade after some rounds only, so means over many are told.
"""

import random
from statistics import fmean, median

from benchmarks.common.repeats import seconds
from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.drafting.stopping import made_together
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import MAX_DRAFT_TOKENS, SamplingParams
from outrider.workers.types.rounds.draft_plan import NO_DRAFTS, DraftPlan
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import LENGTH, RUNNING, Round, Verdict, ints, offsets
from outrider.workers.types.rounds.sequence import Sequence

ASKED, REMADE, KEPT, TOTAL = "asked", "observed, plans remade", "observed, plans kept", "a round"
_PROMPT, _STANDS = 200, 0.8
_TOGETHER = 40  # rounds, more than plans hold for


class Decisions:
    """Plays rounds, and times the policy's part in them."""

    def __init__(self, sequences: int, tokens: int) -> None:
        """`tokens`: of a sequence's output."""
        self._policy, self._rng, self._tokens = DepthPolicy("auto", (8, 2)), random.Random(1), tokens
        self._started = 0
        self._running: list[Sequence] = []
        self._verified: dict[int, int] = {}  # drafts, by sequence
        for n in range(sequences):
            self._running.append(self._next())
            self._running[n].token_ids += [5] * (n * tokens // sequences)  # so that they end one by one
        self._come = self._running.copy()
        self.took: dict[str, list[float]] = {ASKED: [], REMADE: [], KEPT: [], TOTAL: []}

    def _next(self) -> Sequence:
        request = Request(
            request_id="", prompt_token_ids=(3,) * _PROMPT, params=SamplingParams(temperature=0.8), seed=0
        )
        self._started += 1
        return Sequence(
            sequence_id=self._started, request=request, output_index=0, token_ids=[3] * _PROMPT,
            limit=_PROMPT + self._tokens, draft_ceiling=MAX_DRAFT_TOKENS,
        )  # fmt: skip

    def round(self) -> None:
        policy, plans = self._policy, list[DraftPlan]()

        def ask() -> None:
            for each in self._come:
                policy.admit(each, len(self._running))
            plans.extend([policy.plans.get(each.sequence_id, NO_DRAFTS) for each in self._running])

        asked_s = seconds(ask)
        round, verdict = self._run(plans)
        drafts = self._draft(round, verdict, plans)
        rows = round.rows / len(plans)
        round_s = 0.001 * len(plans) ** 0.5 * (1.0 + 0.15 * rows) * self._rng.uniform(1.0, 1.1)
        draft_s = 0.0001 * (1 + max(map(len, drafts.values()), default=0))
        over = [each.sequence_id for each in self._running if len(each.token_ids) >= each.limit]

        def learn() -> None:
            policy.time_of(round, round_s)
            for sequence_id in over:
                policy.forget(sequence_id)
            kept.update(policy.observe(round, verdict, round_s, draft_s, drafts))

        before, kept = dict(policy.plans), dict[int, list[int]]()
        learned_s = seconds(learn)
        remade = any(policy.plans[each] is not before[each] for each in policy.plans)
        self.took[ASKED].append(asked_s)
        self.took[REMADE if remade else KEPT].append(learned_s)
        self.took[TOTAL].append(asked_s + learned_s)
        self._verified = {sequence_id: len(tokens) for sequence_id, tokens in kept.items()}
        self._come = [self._next() for _ in over]
        self._running = [each for each in self._running if each.sequence_id not in over] + self._come

    def _draft(self, round: Round, verdict: Verdict, plans: list[DraftPlan]) -> dict[int, Drafts]:
        going = [n for n, finish in enumerate(verdict.finish.tolist()) if finish == RUNNING]
        leads = [[self._rng.expovariate(0.5) for _ in range(plans[n].depth)] for n in going]
        made = made_together([plans[n].stop for n in going], leads)
        ids = round.sequence_ids.tolist()
        columns = zip(going, leads, made, strict=True)
        return {ids[n]: Drafts([5] * count, own[:count]) for n, own, count in columns if count}

    def _run(self, plans: list[DraftPlan]) -> tuple[Round, Verdict]:
        """What the engine would make of it."""
        running = self._running
        rows = [1 + self._verified.get(each.sequence_id, 0) for each in running]
        starts, accepted = [len(each.token_ids) for each in running], [self._standing(own - 1) for own in rows]
        emitted = [
            min(1 + stood, each.limit - len(each.token_ids)) for stood, each in zip(accepted, running, strict=True)
        ]
        for each, tokens in zip(running, emitted, strict=True):
            each.token_ids += [5] * tokens
        round = Round(
            sequence_ids=ints([each.sequence_id for each in running]), query_offsets=offsets(rows),
            token_ids=ints([5] * sum(rows)), starts=ints(starts), sample_counts=ints(rows),
            draft_steps=ints([plan.depth for plan in plans]), follows=ints([plan.follows for plan in plans]),
            followed_from=ints([1] * len(running)),
        )  # fmt: skip
        verdict = Verdict(
            token_offsets=offsets(emitted), token_ids=ints([5] * sum(emitted)), accepted_rows=ints(emitted),
            drafts_accepted=ints(list(map(min, accepted, emitted))),
            finish=ints([LENGTH if len(each.token_ids) >= each.limit else RUNNING for each in running]),
        )  # fmt: skip
        return round, verdict

    def _standing(self, drafts: int) -> int:
        return next((n for n in range(drafts) if self._rng.random() > _STANDS), drafts)


def decision_us(sequences: int, rounds: int = 800, tokens: int = 512) -> dict[str, float]:
    """Microseconds of a round by part, once it has settled: the median of the means of some rounds in a row."""
    decisions = Decisions(sequences, tokens)
    for _ in range(rounds):
        decisions.round()
    return {part: 1e6 * _mean(took[len(took) // 3 :]) for part, took in decisions.took.items()}


def _mean(values: list[float]) -> float:
    means = [fmean(values[first : first + _TOGETHER]) for first in range(0, len(values), _TOGETHER)]
    return median(means[: max(1, len(values) // _TOGETHER)]) if means else 0.0  # the last may be of few
