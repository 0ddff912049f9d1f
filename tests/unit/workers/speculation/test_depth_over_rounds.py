"""The depth policy as the engine asks it, round by round, on a machine of constant speed: lanes, floors, memory."""

from collections.abc import Callable

import pytest

from outrider.workers.speculation.depth import DepthPolicy
from outrider.workers.speculation.looked_up import LookedUp
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.request import Request
from outrider.workers.types.round import RUNNING, STOPPED, Round, Verdict, ints, offsets
from outrider.workers.types.sampling_params import LOOKUP, SamplingParams
from outrider.workers.types.sequence import Sequence


class Play:
    """Rounds of some sequences: a fixed part, a part for every row, and one for every draft step."""

    def __init__(
        self,
        policy: DepthPolicy,
        sequences: int,
        *,
        stands: Callable[[int], bool] = lambda number: True,
        fixed_s: float = 0.009,
        row_s: float = 0.001,
        looks_up: bool = False,
    ) -> None:
        """`stands`: whether drafts do, by the round's number. `looks_up`: instead of drafting with a model."""
        self.policy, self._stands, self._looks_up = policy, stands, looks_up
        self._fixed_s, self._row_s = fixed_s, row_s
        self.lengths = dict.fromkeys(range(sequences), 10)
        self.verified, self.lost = 0, [0.0]  # drafts; undrafted rounds, over all rounds
        self.params: dict[int, SamplingParams] = {}  # of sequences that are not like the others
        self.draft_s = 0.0  # what drafts took to make, last
        self.cancelled: list[int] = []  # sequences that ended before the next round
        self._drafts: dict[int, int] = {}
        self._rounds = 0

    def sequence(self, sequence_id: int) -> Sequence:
        params = self.params.get(sequence_id) or SamplingParams(temperature=1.0)
        request = Request(request_id="r", prompt_token_ids=(3, 4), params=params, seed=0)
        return Sequence(
            sequence_id=sequence_id, request=request, output_index=0, token_ids=[3, 4], limit=10**6, draft_ceiling=16
        )

    def round(self, ids: list[int], *, lane: int = 0, ending: tuple[int, ...] = (), chunk: int = 0) -> None:
        """`chunk`: prompt tokens of the last sequence, which says nothing yet."""
        counts = [1 + self._drafts.get(i, 0) for i in ids]
        samples = [*counts[:-1], 0] if chunk else counts
        counts = [*counts[:-1], chunk] if chunk else counts
        follows = [self.policy.follows(self.sequence(i)) for i in ids]
        steps = [self.policy.depth(self.sequence(i)) if follow else 0 for i, follow in zip(ids, follows, strict=True)]
        round = Round(
            lane=lane, sequence_ids=ints(ids), query_offsets=offsets(counts), token_ids=ints([5] * sum(counts)),
            starts=ints([self.lengths[i] for i in ids]), sample_counts=ints(samples), draft_steps=ints(steps),
            upkeep=ints(follows), followed_from=ints([1] * len(ids)), ends=ints(self.cancelled),
        )  # fmt: skip
        stands = self._stands(self._rounds)
        emitted = [count if stands else min(count, 1) for count in samples]
        accepted = [*emitted[:-1], chunk] if chunk else emitted
        verdict = Verdict(
            token_offsets=offsets(emitted), token_ids=ints([5] * sum(emitted)), accepted_rows=ints(accepted),
            drafts_accepted=ints([max(count - 1, 0) for count in emitted]),
            finish=ints([STOPPED if i in ending else RUNNING for i in ids]),
        )  # fmt: skip
        self._finish(round, verdict, [i for i in ids if i not in ending])

    def _finish(self, round: Round, verdict: Verdict, going: list[int]) -> None:
        ids, steps = round.sequence_ids.tolist(), round.draft_steps.tolist()
        drafts = self._made(dict(zip(ids, steps, strict=True)), going)
        round_s = self._fixed_s + self._row_s * round.rows
        self.draft_s = 0.0002 + 0.001 * max(steps) if any(round.upkeep.tolist()) else 0.00002
        self.cancelled = []
        self.policy.observe(round, verdict, round_s, self.draft_s, drafts)
        kept = self.policy.worthwhile(drafts) if drafts else {}
        self._drafts = {**self._drafts, **{i: len(kept.get(i, [])) for i in ids}}
        for i, tokens in zip(ids, verdict.accepted_rows.tolist(), strict=True):
            self.lengths[i] += tokens
        self.verified += round.rows - round.sequences
        decoding = int((round.sample_counts > 0).sum())
        worth = len(verdict.token_ids) / decoding
        undrafted_s = self._fixed_s + self._row_s * (round.rows - int(round.sample_counts.sum()) + decoding)
        self.lost.append(self.lost[-1] + (round_s + self.draft_s) / undrafted_s - worth)
        self._rounds += 1

    def _made(self, steps: dict[int, int], going: list[int]) -> dict[int, Drafts]:
        if not self._looks_up:
            return {i: Drafts([5] * steps[i], [6.0] * steps[i]) for i in going if steps[i]}
        proposal = Drafts([5] * 8, [0.95] * 8, LOOKUP)
        found = {i: proposal.first(self.policy.looked_up(proposal)[0]) for i in going if self.policy.looks_up(i)}
        return {i: own for i, own in found.items() if own}


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_however_many_lanes_there_are_those_that_want_to_be_measured_come_to_an_end(lanes: int) -> None:
    play = Play(DepthPolicy("auto"), lanes)
    for number in range(400):
        play.round([number % lanes], lane=number % lanes)

    assert play.verified > 3 * 400


def test_lanes_of_different_sizes_are_measured_too() -> None:
    play = Play(DepthPolicy("auto"), 8, fixed_s=0.018, row_s=0.0003)
    for _ in range(200):
        play.round(list(range(7)), lane=0)
        play.round([7], lane=1)

    assert play.verified > 4 * 8 * 200


def test_an_engine_without_a_model_looks_up_as_deep_as_it_pays() -> None:
    play = Play(DepthPolicy("auto", models=()), 1, row_s=0.0003, looks_up=True)
    for _ in range(300):
        play.round([0])

    assert play.verified > 5 * 300


@pytest.mark.parametrize(("sequences", "fixed_s", "row_s"), [(1, 0.008, 0.002), (1, 0.007, 0.003), (4, 0.007, 0.003)])
def test_a_text_whose_drafts_stand_no_longer_costs_what_the_ledger_held(
    sequences: int, fixed_s: float, row_s: float
) -> None:
    """The rows that it learned from are many and of growing context; those without drafts are few."""
    play = Play(DepthPolicy("auto"), sequences, stands=lambda number: number < 100, fixed_s=fixed_s, row_s=row_s)
    for _ in range(350):
        play.round(list(range(sequences)))
    worst = max(later - min(play.lost[:at]) for at, later in enumerate(play.lost) if at)

    assert play.verified > 300
    assert worst < 30


def test_nothing_is_kept_of_rounds_and_sequences_that_are_gone() -> None:
    policy = DepthPolicy("auto")
    play = Play(policy, 40, stands=lambda number: False)
    for number in range(40):
        for _ in range(60):
            play.round([number])
        play.round([number], ending=(number,))

    assert policy.sequences == 0
    assert len(policy._auto.account._plain) < 200
    assert not policy._hearing._heard


def looked_at(play: Play, ids: list[int], *, lane: int = 0, ending: tuple[int, ...] = (), chunk: int = 0) -> bool:
    """Whether the depths of its lane's sequences were set anew after such a round."""
    play.round(ids, lane=lane, ending=ending, chunk=chunk)
    return play.policy._hearing._lanes[lane].heard == 0


def until_looked_at(play: Play, ids: list[int]) -> None:
    while not looked_at(play, ids):
        pass


def paying(**policy: int) -> Play:
    """Eight sequences whose drafts pay, in a round after which depths hold for some more. One more is to come."""
    play = Play(DepthPolicy("auto", **policy), 9, fixed_s=0.018, row_s=0.0003)
    for _ in range(200):
        play.round(list(range(8)))
    until_looked_at(play, list(range(8)))
    assert play.policy._hearing._lanes[0].holds > 8
    return play


def test_where_drafts_pay_sequences_come_and_end_without_a_look() -> None:
    play = paying()
    looks = [
        looked_at(play, list(range(8)), ending=(7,)),
        looked_at(play, list(range(7))),
        looked_at(play, [*range(7), 8]),
        looked_at(play, [*range(7), 8], ending=(0,)),
        looked_at(play, [*range(1, 7), 8]),
    ]

    assert not any(looks)
    assert play.policy._hearing.together == 7
    assert play._drafts[8] > 0


def test_where_who_comes_has_no_drafts_at_first_all_that_come_or_end_are_looked_at() -> None:
    """As with several data groups."""
    assert looked_at(paying(data_groups=2), list(range(8)), ending=(7,))
    assert looked_at(paying(data_groups=2), [*range(7), 8], chunk=12)


def test_what_passes_meanwhile_is_booked_and_nothing_is_kept_of_who_ended_at_the_next_look() -> None:
    play = paying()
    ledger, kept = play.policy._auto.account.ledger, play.policy.sequences
    ledger._cap = 1000.0
    began, level = play.lost[-1], ledger.level
    looked_at(play, list(range(8)), ending=(7,))
    until_looked_at(play, list(range(7)))

    assert play.policy.sequences == kept - 1
    assert ledger.level - level == pytest.approx(began - play.lost[-1], rel=0.2)


@pytest.mark.parametrize(
    ("ids", "ending"), [(range(8), range(4)), ([*range(8), 8], ())], ids=["half of them end", "the next size of rounds"]
)
def test_others_than_about_as_many_are_looked_at(ids: list[int], ending: tuple[int, ...]) -> None:
    assert looked_at(paying(), list(ids), ending=tuple(ending))


def test_when_all_have_ended_nothing_is_kept() -> None:
    play = paying()

    assert looked_at(play, list(range(8)), ending=tuple(range(8)))
    assert play.policy.sequences == 0


def test_a_cancelled_sequence_is_heard_of_when_the_next_round_says_so() -> None:
    play = paying()
    kept = play.policy.sequences
    play.cancelled = [7]

    assert not looked_at(play, list(range(7)))
    until_looked_at(play, list(range(7)))
    assert play.policy.sequences == kept - 1


def test_a_hotter_text_that_comes_and_the_hottest_that_goes_are_looked_at() -> None:
    play = paying()
    play.params[8] = SamplingParams(temperature=2.0)
    came = looked_at(play, [*range(7), 8])
    until_looked_at(play, [*range(7), 8])

    assert came
    assert looked_at(play, [*range(7), 8], ending=(8,))


def test_who_comes_without_drafts_is_looked_at() -> None:
    play = paying()
    play.policy._auto.worths.found._fleet = LookedUp(share=1.0, rows=8.0, tokens=6.0)  # it should copy all it says
    play.round(list(range(8)), ending=(7,))

    assert looked_at(play, [*range(7), 8])


def test_what_who_ended_owes_is_booked_to_the_ledger_of_its_lane() -> None:
    """Seven in one lane, of which one ends; alone in the other, whose round is the last before the next look."""
    play = Play(DepthPolicy("auto"), 8, fixed_s=0.018, row_s=0.0003)
    for _ in range(150):
        play.round(list(range(7)), lane=0)
        play.round([7], lane=1)
    account, booked = play.policy._auto.account, list[tuple[int, int]]()
    account.forget = lambda _: booked.append(account._turned_to)  # type: ignore[method-assign]
    while not looked_at(play, [7], lane=1):
        play.round(list(range(7)), lane=0)
    play.round(list(range(7)), lane=0, ending=(6,))
    at_once = booked.copy()
    while not looked_at(play, [7], lane=1):
        pass

    assert at_once == []
    assert booked == [(3, 1)]


def test_rounds_with_drafts_that_were_asked_for_are_not_booked() -> None:
    play = paying()
    play.params[8] = SamplingParams(temperature=1.0, speculation=2)
    play.round(list(range(8)), ending=(7,))
    play.round([*range(7), 8])
    until_looked_at(play, [*range(7), 8])
    level = play.policy._auto.account.ledger.level = 5.0
    until_looked_at(play, [*range(7), 8])

    assert play._drafts[8] == 2
    assert play.policy.figures.ledger == level


def test_a_prompt_that_is_followed_meanwhile_is_owed_for() -> None:
    play = paying()
    looked_at(play, list(range(8)), ending=(7,))
    decoding = sum([1 + play._drafts[i] for i in range(6)])
    looked = looked_at(play, [*range(6), 8], chunk=12)
    steps_s = play.draft_s
    until_looked_at(play, list(range(6)))

    assert not looked
    debt = play.policy._auto.account._debts._debts[8]
    assert debt.owed_s == pytest.approx(steps_s * 12 / (12 + decoding))


def test_under_turnover_what_is_lost_is_bounded_and_drafts_that_pay_go_on() -> None:
    """Sequences that say a few tokens to prompts that are followed: none is there when the next look comes."""

    def turn_over(*, stands: bool) -> Play:
        play = Play(DepthPolicy("auto"), 400, fixed_s=0.018, row_s=0.0003, stands=lambda number: stands)
        live = list(range(6))
        for number in range(6, 400):
            play.round([*live, number], chunk=12)
            play.round([*live, number], ending=(live[0],))
            live = [*live[1:], number]
            play.round(live)
        return play

    good, bad = turn_over(stands=True), turn_over(stands=False)

    assert not good.policy.figures.stopped
    assert good.lost[-1] < -0.3 * len(good.lost)
    assert max(later - min(bad.lost[:at]) for at, later in enumerate(bad.lost) if at) < 0.02 * len(bad.lost) + 10
