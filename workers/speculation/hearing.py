"""What the depth policy makes of the rounds that run: it learns from them, and sets depths for those that follow.

Where drafts pay a look is rare: depths hold while about as many sequences decode, and the rounds in between are learned
from together. Where speculation has no part in them they go by unlooked. Pure: seconds are given to it.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import compress
from operator import not_
from typing import NamedTuple

import numpy as np

from outrider.workers.speculation.acceptance import Made
from outrider.workers.speculation.auto_depth import AutoDepth
from outrider.workers.speculation.cost import HELD
from outrider.workers.speculation.kinds import Kinds
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.lane_plan import LanePlan, decodes, going_on
from outrider.workers.speculation.naps import Naps
from outrider.workers.speculation.seen import Seen
from outrider.workers.speculation.worths import Live
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import RUNNING, Round, Verdict
from outrider.workers.types.round_time import RoundTime
from outrider.workers.types.sampling_params import LOOKUP, MTP

# Rounds heard of together, the latest: whose drafts' outcomes are learned from; whose time is. Of the others the sums.
_MOST_TAUGHT, _MOST_TIMED = 6, 4


class _Heard(NamedTuple):
    """A round that was run, and not learned from yet."""

    round: Round
    verdict: Verdict
    round_s: float
    draft_s: float
    decided_s: float
    drafts: Mapping[int, Drafts] | None
    made: dict[int, Made]  # the drafts that it verified
    undrafted_s: float  # what it would have taken without drafts; 0: unknown, or it held prompt chunks
    own: bool  # all its drafts were made because they were thought to pay
    heat: int  # of the hottest that lived


class Hearing:
    """Of all lanes of one replica. Not thread-safe."""

    def __init__(self, auto: AutoDepth, kinds: Kinds, models: Collection[str], forget: Callable[[int], None]) -> None:
        """`kinds` are the sequences' that `auto` decides for; `forget` hears of those that ended."""
        self._auto, self._kinds, self._models, self._ended = auto, kinds, tuple(models), forget
        self.together = 0  # sequences that decode in the lane that changed last
        self._lanes: dict[int, LanePlan] = {}
        self._lane = 0  # the one observed last
        self._heard: deque[_Heard] = deque()  # the latest
        self._decided_s: list[float] = []  # of all rounds since the last look
        self._turned = False  # depths want to be set anew
        self._naps: dict[int, Naps] = {}  # by lane

    @property
    def plain(self) -> Shape:
        """The next round of the lane observed last, without drafts."""
        return self._lanes[self._lane].plain

    def turn(self) -> None:
        """Something changed that depths depend on: they are set anew after the next round."""
        self._turned = True

    def catch_up(self) -> None:
        """Learns from what was heard of."""
        self.wake()
        if self._heard:
            self._learn()

    def time_of(self, round: Round, round_s: float) -> RoundTime:
        """What a round took, `round_s` of it since its scheduling, and would have taken without drafts, as modelled.

        Unknown while no round's time is, while speculation is stopped, and of rounds with prompt chunks.
        """
        lane = self._lanes.get(round.lane)
        return RoundTime() if lane is None or self._auto.figures.stopped else lane.time_of(round, round_s)

    def observe(
        self,
        round: Round,
        verdict: Verdict,
        round_s: float,
        draft_s: float,
        drafts: Mapping[int, Drafts] | None,
        decided_s: float,
    ) -> None:
        """As DepthPolicy.observe.

        Where drafts pay a few rounds are learned from together: that slows what is measured.
        """
        lane = self._lanes.get(round.lane) or self._lanes.setdefault(round.lane, LanePlan())
        self._lane, lane.draft_s = round.lane, draft_s
        self._auto.account.turn_to(round.sequences, self._kinds.heat)
        if not drafts and self._slept(round, verdict, round_s):
            return
        self.wake()
        heard = self._hear(lane, round, verdict, (round_s, draft_s, decided_s), drafts)
        ended = _ended(round, verdict)
        for each in ended:
            self._kinds.forget(each)
        lane.ended += (*round.ends.tolist(), *ended)
        if self._turned:
            lane.holds = 1
        goes_on = lane.affords(round, verdict, round_s + draft_s, heard.undrafted_s)
        if goes_on and (ended or not lane.is_like(round)):
            goes_on = self._bends(lane, going_on(round, verdict))
        if not goes_on or len(self._decided_s) >= lane.holds:
            self._learn()

    def _hear(
        self,
        lane: LanePlan,
        round: Round,
        verdict: Verdict,
        times: tuple[float, float, float],
        drafts: Mapping[int, Drafts] | None,
    ) -> _Heard:
        """Remembers a round, and books the one that is the oldest remembered now, if these are too many."""
        made = self._auto.take(round.sequence_ids.tolist())
        undrafted_s, own = self._undrafted_s(lane, round), lane.own or self._own(round)
        heard = _Heard(round, verdict, *times, drafts, made, undrafted_s, own, self._kinds.heat)
        self._heard.append(heard)
        self._decided_s.append(heard.decided_s)
        lane.heard += 1
        if len(self._heard) > max(_MOST_TAUGHT, len(self._lanes)):  # each lane's last is still there
            self._pass_over(self._heard.popleft())
        return heard

    def _undrafted_s(self, lane: LanePlan, round: Round) -> float:
        """What a decoding round would have taken without drafts; 0: it is none, or that is unknown."""
        if not lane.undrafted_s or lane.is_like(round):
            return lane.undrafted_s
        plain = lane.resized(round.sequences)
        return self._auto.cost.undrafted(plain.sequences, plain.context) if decodes(round) else 0.0

    def _bends(self, lane: LanePlan, going: int) -> bool:
        """Whether depths may hold although sequences came or ended: `going` decode next."""
        if not lane.bends_to(going, self._kinds.heat):
            return False
        self.together, plain = going, lane.resized(going)
        lane.bend(plain, self._auto.cost.undrafted(going, plain.context))
        return True

    def _pass_over(self, heard: _Heard) -> None:
        """A round of which there is nothing to know but what it brought and took."""
        lane = self._lanes[heard.round.lane]
        if not decodes(heard.round):
            self._owe(heard.round, heard.verdict, heard.draft_s)
        elif heard.own and heard.undrafted_s:
            lane.pass_over(heard.round, heard.verdict, heard.round_s + heard.draft_s, heard.undrafted_s)

    def _own(self, round: Round) -> bool:
        """Whether all the round's drafts were made because they were thought to pay."""
        drafts = zip(round.sequence_ids.tolist(), round.sample_counts.tolist(), strict=True)
        return all(count == 1 or sequence_id in self._kinds for sequence_id, count in drafts)

    def _learn(self) -> None:
        """Takes in the rounds that were heard of, and sets the depths of their lanes' sequences."""
        heard, self._heard, self._turned = self._heard, deque(), False
        decided_s, self._decided_s = self._decided_s, []
        self._auto.cost.decided(decided_s)
        last = {each.round.lane: n for n, each in enumerate(heard)}
        whole = [n + _MOST_TIMED >= len(heard) or n == last[each.round.lane] for n, each in enumerate(heard)]
        for each in compress(heard, map(not_, whole)):
            self._teach(each)
        for lane in self._lanes.values():
            self._settle(lane)
        latest = {each.round.lane: self._take_in(each) for each in compress(heard, whole)}
        for lane in self._lanes.values():
            self._part(lane)
        for lane_id, seen in latest.items():
            self._plan(lane_id, seen.going, seen.whole)

    def _settle(self, lane: LanePlan) -> None:
        """Books the rounds that were passed over since depths were set, by what lived then."""
        passed = lane.take_passed()
        if passed.rounds:
            self._auto.account.turn_to(lane.plain.sequences, lane.heat)
            self._auto.account.count(lane.plain.sequences, passed.rounds, passed.worth, passed.took)

    def _part(self, lane: LanePlan) -> None:
        """Forgets those that ended: what they owe is booked to the ledger that was theirs."""
        if ended := lane.take_ended():
            self._auto.account.turn_to(lane.plain.sequences, lane.heat)
            self._forget(ended)

    def _teach(self, heard: _Heard) -> None:
        """Of such a round the drafts' fate too."""
        self._pass_over(heard)
        if heard.made:
            self._auto.account.turn_to(heard.round.sequences, heard.heat)
            seen = Seen.of(heard.round, heard.verdict, heard.drafts, self._model_of(heard.drafts))
            self._auto.learn_acceptance(seen.outcomes, heard.made)

    def _take_in(self, heard: _Heard) -> Seen:
        round, verdict = heard.round, heard.verdict
        self._auto.account.turn_to(round.sequences, heard.heat)
        seen = Seen.of(round, verdict, heard.drafts, self._model_of(heard.drafts))
        if seen.whole:
            tokens, times = len(verdict.token_ids), (heard.round_s, heard.draft_s, heard.decided_s)
            self._auto.observe(seen.outcomes, seen.shape, tokens, *times, own=heard.own, made=heard.made)
        else:
            self._auto.learn_acceptance(seen.outcomes, heard.made)
            self._owe(round, verdict, heard.draft_s)
        return seen

    def _owe(self, round: Round, verdict: Verdict, draft_s: float) -> None:
        """Books the drafter's share of a round of prompts to those that it followed."""
        followed = int(verdict.accepted_rows @ round.upkeep)
        columns = zip(
            round.sequence_ids.tolist(), verdict.accepted_rows.tolist(), round.upkeep.tolist(),
            np.diff(round.query_offsets).tolist(), round.sample_counts.tolist(), strict=True,
        )  # fmt: skip
        for sequence_id, accepted, upkeep, rows, samples in columns:
            if upkeep and accepted and rows > samples:  # a chunk
                self._auto.account.owe(sequence_id, accepted, draft_s * accepted / followed, ends=samples > 0)

    def _model_of(self, drafts: Mapping[int, Drafts] | None) -> str:
        """Which model took steps for these; of several one that is not the usual one, and takes longer."""
        usual = next(iter(self._models), MTP)
        if drafts is None or len(self._models) < 2:
            return usual
        return min({own.drafter for own in drafts.values() if own} - {LOOKUP, usual}, default=usual)

    def _slept(self, round: Round, verdict: Verdict, round_s: float) -> bool:
        """Whether speculation had no part in a round, which is not worth looking at."""
        if len(round.token_ids) != round.sequences or (len(self._kinds) and not self._naps_on(round, round_s)):
            return False
        ended = _ended(round, verdict)
        if ended or len(round.ends):
            self.together = going_on(round, verdict)
            self.catch_up()
            self._forget((*round.ends.tolist(), *ended))
        return True

    def _naps_on(self, round: Round, round_s: float) -> bool:
        """Whether a round without drafts need not be looked at."""
        naps = self._naps.get(round.lane) or self._naps.setdefault(round.lane, Naps())
        if naps.add(round.sequences, round_s):
            return True
        self.wake()
        context = float(sum(round.starts.tolist()) + round.sequences)
        naps.begin(self._auto.sleeps(), Shape(round.sequences, round.sequences, context, context))
        return naps.add(round.sequences, round_s)

    def wake(self) -> None:
        """Counts the rounds that went by."""
        for naps in self._naps.values():
            if rounds := naps.end():
                self._auto.slept(rounds)

    def _plan(self, lane: int, going: Mapping[int, int], whole: bool) -> None:
        """Sets the depths of a lane's sequences, by id with their tokens."""
        self.together = len(going)
        context, plan = float(sum(going.values())), self._lanes[lane]
        rounds, plan.heat = plan.heard, self._kinds.heat
        known = len(going) > 0 and self._auto.cost.known
        undrafted_s = self._auto.cost.undrafted(len(going), context) if known else 0.0
        if going:
            self._auto.account.turn_to(len(going), self._kinds.heat)
        plan.renew(Shape(len(going), len(going), context, context), undrafted_s, self._auto.account.ledger.level)
        kinds = [(i, self._kinds.get(i), tokens) for i, tokens in going.items()]
        live = [Live(i, kind, tokens) for i, kind, tokens in kinds if kind is not None]
        plan.own, plan.most = len(live) == len(going), self._auto.account.most(len(going))
        if not live:
            plan.hold(HELD)
            plan.bends = False
            self._auto.idle(lane)
            return
        measurable = plan.own if whole else None
        plan.hold(self._auto.plan(live, plan.plain, lane=lane, measurable=measurable, rounds=rounds))
        plan.bends = self._auto.welcomes

    def _forget(self, ended: Iterable[int]) -> None:
        for sequence_id in ended:
            self._ended(sequence_id)


def _ended(round: Round, verdict: Verdict) -> list[int]:
    """Sequences that ended with the round."""
    if not any(verdict.finish.tolist()):  # numpy's own takes longer
        return []
    ended: list[int] = round.sequence_ids[verdict.finish != RUNNING].tolist()
    return ended
