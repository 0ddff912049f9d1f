"""A replica without a model or a clock: the real scheduler and depth policy, over a machine and texts that tests set.

Its loop is the engine's (workers/engine/engine.py). The target says token + 1 (fake_pipeline.py).
"""

import gc
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from fake_pipeline import VOCAB, CountingPipeline

from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.drafting.stopping import made_together
from outrider.workers.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import LOOKUP, SamplingParams
from outrider.workers.types.rounds.draft_plan import NO_DRAFTS
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round, Verdict
from outrider.workers.types.rounds.stop_rule import NEVER_STOP, StopRule


@dataclass
class Machine:
    """Seconds of a round: a fixed part, one for each row, and of drafting: at all, a step, a followed token."""

    fixed: float = 0.006
    row: float = 0.0015
    follows: float = 0.0002
    step: float = 0.001
    followed: float = 0.00005
    slower: float = 1.0  # times all of them
    drafting_slower: float = 1.0  # times drafting alone

    def round_s(self, rows: int) -> float:
        return self.slower * (self.fixed + self.row * rows)

    def draft_s(self, steps: int, followed: int) -> float:
        drafting = self.follows + self.step * steps + self.followed * followed
        return self.slower * self.drafting_slower * drafting


@dataclass
class Texts:
    """What becomes of drafts."""

    accepted: float = 0.9  # the chance of each
    lead: float | None = None  # of every draft; None: wide where it is accepted, narrow where not
    copied: float = 0.0  # the chance that a round's tokens can be looked up
    fails: bool = False  # the drafter raises an error


@dataclass
class Ran:
    """One round."""

    round: Round
    verdict: Verdict
    automatic: list[int]  # its sequences whose depth is left to the policy
    drafts: bool  # whether a model is asked for drafts of one of these
    looks_up: bool  # whether text may be looked up for one of these
    took_s: float
    plain_s: float = 0.0  # what the policy says that it would have taken without drafts; 0: it does not look at it
    observed_calls: int = 0  # of Python functions, by DepthPolicy.observe


@dataclass
class Replica:
    """One of some lanes, whose rounds run in turn."""

    policy: DepthPolicy
    lanes: int = 1
    machine: Machine = field(default_factory=Machine)
    texts: Texts = field(default_factory=Texts)
    most: int = 64  # tokens in a round
    count_calls: bool = False

    def __post_init__(self) -> None:
        config = SchedulerConfig(
            max_num_seqs=16, max_num_batched_tokens=self.most, block_size=16, num_blocks=16_384, max_model_len=200_000,
            lanes=self.lanes, may_skip_drafter=True,
        )  # fmt: skip
        self.scheduler = Scheduler(config, self.policy)
        self._pipeline = CountingPipeline(max_model_len=config.max_model_len)
        self._rng = random.Random(0)
        self._names = 0
        self.rounds = 0
        self.live: list[str] = []
        self.params: dict[int, SamplingParams] = {}  # of sequences that have begun

    def ask(self, prompt: int = 4, tokens: int = 100, **params: Any) -> str:
        """A request; gives its id."""
        own = SamplingParams(max_tokens=tokens, ignore_eos=True, **params)
        self._names += 1
        request = Request(request_id=f"r{self._names}", prompt_token_ids=(3,) * prompt, params=own, seed=0)
        self.scheduler.add(request)
        self.live.append(request.request_id)
        return request.request_id

    def cancel(self, name: str) -> None:
        self.scheduler.cancel(name)
        self.live.remove(name)

    @property
    def sequences(self) -> int:
        """That live."""
        return self.scheduler.counters.running + self.scheduler.counters.waiting

    def teach_times(self) -> None:
        """As the engine's warm-up does."""
        for size in (1, 4):
            for depth in (1, 3):
                for _ in range(size):
                    self.ask(tokens=24, speculation=depth)
                while self.scheduler.has_work:
                    self.round()
        self.policy.begin()

    def run(self, rounds: int) -> list[Ran]:
        """So many rounds, fewer where all sequences end."""
        ran = []
        while len(ran) < rounds and self.scheduler.has_work:
            ran.append(self.round())
        return ran

    def round(self) -> Ran:
        lane = self.rounds % self.lanes
        self.rounds += 1
        round = self.scheduler.schedule(lane)
        if not round.sequences:
            return Ran(round, Verdict(), [], False, False, 0.0)
        self.params.update((start.sequence_id, start.params) for start in round.begins)
        self._pipeline.dispatch(round)
        verdict = self._pipeline.collect().verdict
        automatic = [each for each in round.sequence_ids.tolist() if self.params[each].speculation in (None, "auto")]
        plans = [self.policy.plans.get(each, NO_DRAFTS) for each in automatic]
        asked = any(plan.depth for plan in plans), any(plan.looks_up for plan in plans)
        round_s = self.machine.round_s(round.rows)
        times = self.policy.time_of(round, round_s)
        for chunk in self.scheduler.commit(round, verdict, times):
            if chunk.finish_reason is not None and chunk.request_id in self.live:
                self.live.remove(chunk.request_id)
        drafts, draft_s = self._draft(round, verdict)
        verified, calls = dict[int, list[int]](), 0

        def observe() -> None:
            verified.update(self.policy.observe(round, verdict, round_s, draft_s, drafts))

        if self.count_calls:
            calls = python_calls(observe)
        else:
            observe()
        self.scheduler.set_drafts(verified)
        return Ran(round, verdict, automatic, *asked, round_s + draft_s, times.undrafted_s, calls)

    def _draft(self, round: Round, verdict: Verdict) -> tuple[Mapping[int, Drafts], float]:
        if not len(round.follows):
            return {}, 0.0
        followed = int(verdict.accepted_rows @ round.follows)
        if self.texts.fails:
            self.scheduler.unfollow()
            self.policy.failed("mtp", "no drafts today")
            return {}, self.machine.draft_s(0, followed)
        ids, steps = round.sequence_ids.tolist(), round.draft_steps.tolist()
        said, ends = verdict.token_ids.tolist(), verdict.token_offsets.tolist()
        lasts = {each: said[ends[n + 1] - 1] for n, each in enumerate(ids) if ends[n + 1] > ends[n]}
        found = self._look_up(lasts)
        going = [n for n, each in enumerate(ids) if steps[n] and each in lasts and each not in found]
        rules = [StopRule(*row) for row in round.stop_rules.reshape(-1, 7).tolist()] or [NEVER_STOP] * len(ids)
        made = {n: self._texts_drafts(lasts[ids[n]], steps[n]) for n in going}
        depths = made_together([rules[n] for n in going], [made[n].confidences for n in going])
        drafts = {ids[n]: made[n].first(depth) for n, depth in zip(going, depths, strict=True)} | found
        return drafts, self.machine.draft_s(max(depths, default=0), followed)

    def _look_up(self, lasts: Mapping[int, int]) -> dict[int, Drafts]:
        """As workers/drafting/choosing_drafter.py does."""
        found = {}
        for each, last in lasts.items():
            if self.texts.copied and self.policy.looks_up(each) and self._rng.random() < self.texts.copied:
                proposal = Drafts([(last + 1 + n) % VOCAB for n in range(8)], [0.95] * 8, LOOKUP)
                kept = proposal.first(self.policy.evaluate_lookup(proposal)[0])
                self.policy.observe_lookup(each, kept)
                if kept:
                    found[each] = kept
        return found

    def _texts_drafts(self, last: int, depth: int) -> Drafts:
        stand = [self._rng.random() < self.texts.accepted for _ in range(depth)]
        leads = [self._rng.expovariate(0.4 if stood else 1.5) for stood in stand]
        tokens = [(last + 1 + n + (not stood)) % VOCAB for n, stood in enumerate(stand)]
        return Drafts(tokens, leads if self.texts.lead is None else [self.texts.lead] * depth)


def python_calls(act: Callable[[], object]) -> int:
    """Of Python and C functions, while it acts."""
    counted = Counter[str]()
    sys.setprofile(lambda frame, event, argument: counted.update([event]))
    try:
        act()
    finally:
        sys.setprofile(None)
    return counted["call"] + counted["c_call"]


def objects(kept: object) -> int:
    """How many objects can be reached from this one, types, modules and functions aside."""
    seen, waiting = set[int](), [kept]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen.add(id(one))
            waiting += gc.get_referents(one)
    return len(seen)
