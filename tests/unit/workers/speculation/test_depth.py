"""Whose word counts: the engine's setting, the request's, and the measured price."""

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from outrider.workers.speculation.base_rounds import BURST
from outrider.workers.speculation.depth import DepthPolicy
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.request import Request
from outrider.workers.types.round import RUNNING, STOPPED, Round, Verdict, ints
from outrider.workers.types.round_time import RoundTime
from outrider.workers.types.sampling_params import DRAFT_MODEL, LOOKUP, MTP, SamplingParams
from outrider.workers.types.sequence import Sequence


def sequence(speculation: str | int | None = None, sequence_id: int = 0) -> Sequence:
    params = SamplingParams(speculation=speculation)
    request = Request(request_id="r", prompt_token_ids=(3, 4), params=params, seed=0)
    return Sequence(
        sequence_id=sequence_id, request=request, output_index=0, token_ids=[3, 4], limit=100, draft_ceiling=16
    )


@pytest.mark.parametrize(
    ("engine", "request_", "depth"),
    [
        ("off", None, 0),
        ("off", "auto", 0),
        ("auto", "off", 0),
        ("auto", 5, 5),
        ("auto", 16, 16),
        (3, None, 3),
        (3, "off", 0),
        (3, 2, 2),
        (3, 9, 3),
        (16, None, 16),
    ],
)
def test_the_engine_is_the_ceiling_and_the_request_may_ask_for_less(
    engine: str | int, request_: str | int | None, depth: int
) -> None:
    policy = DepthPolicy(engine)

    assert {policy.depth(sequence(request_)) for _ in range(20)} == {depth}


def seen(
    sequence_id: int, drafts: int, accepted: int, *, finish: int = RUNNING, chunk: int = 0, steps: int = 4
) -> tuple[Round, Verdict]:
    """A round of one decoding sequence, and of `chunk` prompt tokens of another."""
    rows, others = drafts + 1, 1 if chunk else 0
    round = Round(
        sequence_ids=ints([sequence_id, 99][: 1 + others]),
        query_offsets=ints([0, rows, rows + chunk][: 2 + others]),
        token_ids=ints([5] * (rows + chunk)),
        starts=ints([9, 0][: 1 + others]),
        sample_counts=ints([rows, 0][: 1 + others]),
        draft_steps=ints([steps, 0][: 1 + others]),
        upkeep=ints([1, 1][: 1 + others]),
        followed_from=ints([1, 1][: 1 + others]),
    )
    emitted = accepted + 1
    verdict = Verdict(
        token_offsets=ints([0, emitted, emitted][: 2 + others]),
        token_ids=ints([5] * emitted),
        accepted_rows=ints([emitted, chunk][: 1 + others]),
        drafts_accepted=ints([accepted, 0][: 1 + others]),
        finish=ints([finish, RUNNING][: 1 + others]),
    )
    return round, verdict


def alike(count: int, confidence: float, drafter: str = MTP) -> Drafts:
    return Drafts([5] * count, [confidence] * count, drafter)


def play(policy: DepthPolicy, speculation: str | None, rounds: int, *, step_s: float, accept_all: bool) -> list[int]:
    """Rounds of one sequence as the engine runs them: chosen depth k is drafted after round k and verified in k+1."""
    drafts, chosen = 0, []
    for _ in range(rounds):
        depth = policy.depth(sequence(speculation))
        chosen.append(depth)
        round, verdict = seen(0, drafts, drafts if accept_all else 0, steps=depth)
        policy.observe(round, verdict, round_s=0.010 + 0.001 * drafts, draft_s=0.0005 + step_s * depth)
        drafts = len(policy.worthwhile({0: alike(depth, 3.0)})[0])
    return chosen


def test_what_a_round_saved_is_told_beside_one_without_drafts_once_times_are_known() -> None:
    """One takes 10 ms; drafts took 3 ms to make before it, and 1 ms each to verify in it."""
    policy = DepthPolicy("auto")
    round, verdict = seen(0, 3, 3)
    assert policy.time_of(round, 0.013) == RoundTime()

    play(policy, None, 300, step_s=0.001, accept_all=True)
    policy.observe(round, verdict, round_s=0.013, draft_s=0.003)
    time = policy.time_of(round, 0.013)

    assert time.took_s == pytest.approx(0.016)
    assert time.undrafted_s == pytest.approx(0.0105, rel=0.2)
    assert policy.time_of(seen(0, 3, 3, chunk=8)[0], 0.013) == RoundTime()


def test_auto_drafts_deep_where_drafts_are_cheap_and_good() -> None:
    assert sorted(play(DepthPolicy("auto"), None, 300, step_s=0.001, accept_all=True)[100:])[100] >= 6


def test_auto_does_not_draft_where_making_drafts_costs_more_than_they_save() -> None:
    chosen = play(DepthPolicy("auto"), None, 300, step_s=0.02, accept_all=True)[100:]

    assert chosen.count(0) > 0.9 * len(chosen)


def test_a_request_may_ask_for_auto_under_a_fixed_ceiling() -> None:
    chosen = play(DepthPolicy(2), "auto", 200, step_s=0.001, accept_all=True)

    assert max(chosen) == 2


def test_rounds_with_prompt_chunks_say_nothing_of_time() -> None:
    policy = DepthPolicy("auto")
    play(policy, None, 200, step_s=0.001, accept_all=True)
    usual = max(play(policy, None, 9, step_s=0.001, accept_all=True))

    for _ in range(50):
        policy.observe(*seen(0, usual, usual, chunk=100), round_s=5.0, draft_s=0.001 * usual)

    assert max(play(policy, None, 9, step_s=0.001, accept_all=True)) == usual


def test_what_ended_is_forgotten() -> None:
    policy = DepthPolicy("auto")
    for sequence_id in range(100):
        policy.depth(sequence(sequence_id=sequence_id))
        round, verdict = seen(sequence_id, 0, 0, finish=STOPPED if sequence_id % 2 else RUNNING)
        policy.observe(replace(round, ends=ints([sequence_id - 1])), verdict, round_s=0.01, draft_s=0.0)

    assert policy.sequences <= 1


DOUBTFUL = Drafts([1, 2, 3, 4], [9.0, 0.0, 0.0, 9.0])


def taught() -> DepthPolicy:
    policy = DepthPolicy("auto")
    play(policy, None, 200, step_s=0.001, accept_all=True)
    policy._auto.account.ledger._credit = 0.0  # for trying things
    return policy


def test_under_auto_drafts_are_verified_while_their_confidence_is_worth_their_time() -> None:
    policy = taught()
    for _ in range(20):  # a row takes half of a round's fixed time
        policy.observe(*seen(0, 0, 0), round_s=0.010, draft_s=0.0)
        policy.observe(*seen(0, 3, 3), round_s=0.025, draft_s=0.0)

    assert policy.worthwhile({0: DOUBTFUL}) in ({0: [1]}, {0: [1, 2]})


def test_a_fixed_depth_is_verified_whatever_the_confidence() -> None:
    policy = taught()
    policy.depth(sequence(4, sequence_id=3))

    assert policy.worthwhile({3: DOUBTFUL}) == {3: [1, 2, 3, 4]}


def test_drafts_without_an_alternative_have_a_lead_without_end_and_are_verified() -> None:
    policy = taught()
    sure = Drafts([1, 2], [float("inf")] * 2)

    assert policy.worthwhile({0: sure}) == {0: [1, 2]}
    policy.observe(*seen(0, 2, 2), round_s=0.012, draft_s=0.001)


@pytest.mark.parametrize("upkeep", [0, 1])
def test_a_prompt_that_the_drafter_follows_is_owed_for(upkeep: int) -> None:
    policy = DepthPolicy("auto")
    policy.depth(sequence())
    round, verdict = seen(0, 2, 2)
    chunk = replace(round, sample_counts=ints([0]), upkeep=ints([upkeep]))
    policy.observe(chunk, verdict, round_s=0.01, draft_s=0.003)

    assert policy._auto.account._debts.forget(0) == pytest.approx(0.003 * upkeep)


def test_a_sequence_of_fixed_depth_is_always_followed_and_one_under_auto_while_it_pays() -> None:
    policy = DepthPolicy("auto")
    play(policy, None, 96, step_s=0.002, accept_all=False)

    assert policy.follows(sequence(4, sequence_id=3))
    assert not policy.follows(sequence(None))
    assert policy.follows(sequence(None, sequence_id=7))


def test_steps_that_were_spared_by_looking_up_are_not_taken_for_cheap_ones() -> None:
    """Drafting takes 5 ms; half of the rounds look up instead, at once. The model's price is still the whole."""
    policy = DepthPolicy("auto")
    chosen = []
    for number in range(300):
        depth = policy.depth(sequence())
        chosen.append(depth)
        spared = number % 2 == 0
        drafts = {0: alike(3, 0.9, LOOKUP) if spared else alike(depth, 3.0)}
        round, verdict = seen(0, 0, 0)
        round = dataclasses.replace(round, draft_steps=ints([depth]))
        policy.observe(round, verdict, 0.010, 0.0 if spared else 0.020 * (depth > 0), drafts)
        policy.worthwhile(drafts)

    assert chosen[150:].count(0) > 120


def looked_up(*chances: float) -> dict[int, Drafts]:
    return {0: Drafts([5 + n for n in range(len(chances))], list(chances), LOOKUP)}


def test_what_was_looked_up_is_verified_as_far_as_it_is_worth_its_rows() -> None:
    policy = taught()

    assert policy.worthwhile(looked_up(0.9, 0.9, 0.9)) == {0: [5, 6, 7]}
    assert policy.worthwhile(looked_up(0.9, 0.01, 0.9)) == {0: [5]}
    assert policy.looked_up(looked_up(0.9, 0.01, 0.9)[0])[0] == 1


def test_behind_the_floor_nothing_is_looked_up() -> None:
    policy = taught()
    while not policy.figures.stopped:  # ten times the time, and none of it stands
        policy.depth(sequence())
        policy.observe(*seen(0, 3, 0), 0.100, 0.0, looked_up(0.9))

    assert policy.worthwhile(looked_up(0.99, 0.99)) == {0: []}
    assert policy.resting
    assert not policy.looks_up(0)
    assert policy.looks_up(99)  # its depth is fixed


def test_of_two_models_the_one_drafts_that_is_worth_more() -> None:
    """The second model's drafts stand, and the first one's do not."""
    policy = DepthPolicy("auto", models=(MTP, DRAFT_MODEL))
    policy.depth(sequence())
    assert policy.best_model(0, 3, sharing=1)[0] == MTP

    def play_both(rounds: int, step_s: float) -> None:
        for number in range(rounds):
            for name, accepted in ((MTP, 0), (DRAFT_MODEL, 3)):
                drafts = {0: alike(3, 3.0, name)}
                policy.observe(*seen(0, 0, 0), 0.010, 0.0 if number % 2 else step_s, {} if number % 2 else drafts)
                policy.worthwhile(drafts)
                policy.observe(*seen(0, 3, accepted), 0.012, 0.0)

    play_both(60, step_s=0.003)
    assert policy.best_model(0, 3, sharing=1)[0] == DRAFT_MODEL
    assert policy.best_model(0, 0, sharing=1)[0] is None


def test_looked_up_drafts_are_preferred_only_by_a_token_but_where_lookup_carries_the_sequence() -> None:
    policy = taught()
    kind = policy._kinds.get(0)
    assert kind is not None
    alone = policy._auto.worths.model(0, kind, 3, sharing=1)

    assert policy.best_model(0, 3, sharing=1) == (MTP, pytest.approx(1.0 + alone))
    assert policy.best_model(0, 0, sharing=1) == (None, 1.0)
    for _ in range(20):
        policy.chose(0, looked_up(*[0.99] * 4)[0])
    assert policy.best_model(0, 0, sharing=1) == (None, 0.0)


def test_without_a_model_looked_up_drafts_need_only_be_worth_their_rows() -> None:
    policy = DepthPolicy("auto", models=())
    policy.depth(sequence())

    assert policy.best_model(0, 0, sharing=1) == (None, 0.0)


def test_without_a_model_no_steps_are_asked_for() -> None:
    assert set(play(DepthPolicy("auto", models=()), None, 50, step_s=0.0, accept_all=True)) == {0}


def test_drafts_that_a_model_did_not_make_are_not_taken_for_cheap_ones() -> None:
    """Rounds ask for four steps, and nothing comes of them at once: somebody looked up in vain, or failed."""
    policy = taught()
    steps = (0.0, 0.0, 1.0, 4.0, 4.0)  # four of one sequence
    before = policy._auto.cost.drafting(MTP).seconds(steps)
    for _ in range(100):
        policy.observe(*seen(0, 0, 0), 0.010, 0.0, {})

    assert policy._auto.cost.drafting(MTP).seconds(steps) > 0.7 * before


def test_a_sequence_that_never_begins_is_forgotten() -> None:
    policy = DepthPolicy("auto")
    assert policy.follows(sequence(sequence_id=3))
    assert policy.sequences == 1

    policy.forget(3)
    policy.forget(3)

    assert policy.sequences == 0


def test_a_sequence_that_lookup_carries_is_not_followed_by_models_until_it_ceases_to() -> None:
    policy, found = taught(), looked_up(*[0.95] * 8)[0]
    assert policy.follows(sequence(None))
    assert not policy.copied
    followed = []
    for kept in (*[found] * 80, *[Drafts([], [])] * 20):
        policy.chose(0, kept)
        policy.observe(*seen(0, len(kept), len(kept)), 0.014 if kept else 0.010, 0.0, {})
        followed.append(policy.follows(sequence(None)))

    assert policy.copied
    assert not any(followed[10:80])
    assert any(followed[80:])


def test_depths_are_set_anew_as_soon_as_lookup_begins_to_carry_a_sequence() -> None:
    policy, found = taught(), looked_up(*[0.95] * 8)[0]
    plans, plan = [], policy._auto.plan
    policy._auto.plan = lambda *args, **told: plans.append(len(heard)) or plan(*args, **told)  # type: ignore[method-assign]
    heard: list[int] = []
    for kept in (*[Drafts([], [])] * 2, *[found] * 4):
        heard.append(len(kept))
        policy.chose(0, kept)
        policy.observe(*seen(0, 3, 3), 0.014, 0.001)

    assert set(plans) & {4, 5, 6}


def test_one_that_only_looks_up_is_not_followed_by_models() -> None:
    only = dataclasses.replace(sequence().request.params, drafter=LOOKUP)
    looking = sequence()
    looking.request = dataclasses.replace(looking.request, params=only)
    policy = taught()

    assert not policy.follows(looking)
    assert policy.depth(looking) == 0


def test_what_the_warm_up_taught_is_forgotten() -> None:
    policy = taught()
    policy.reset()

    assert not policy._auto.cost.known
    assert policy.figures.ledger == DepthPolicy("auto").figures.ledger


def test_a_stopped_engine_forgets_what_ends_in_rounds_that_it_does_not_look_at() -> None:
    policy = taught()
    while not policy.figures.stopped:
        policy.observe(*seen(0, 3, 0), 0.100, 0.0)
    for sequence_id in range(100, 150):
        policy.follows(sequence(sequence_id=sequence_id))
        policy.observe(*idle_round(sequence_id, finish=STOPPED), 0.010, 0.0, {})

    assert policy.sequences <= 1


def idle_round(sequence_id: int, *, finish: int) -> tuple[Round, Verdict]:
    round, verdict = seen(sequence_id, 0, 0, finish=finish)
    return replace(round, draft_steps=ints([0]), upkeep=ints([0])), verdict


def test_where_nobody_speculates_rounds_are_not_looked_at() -> None:
    policy = DepthPolicy("auto")
    off = sequence("off")
    assert policy.depth(off) == 0
    policy.observe(*idle_round(0, finish=RUNNING), 0.010, 0.0, {})

    assert policy.resting
    assert not policy._auto.cost.known


def test_rounds_without_drafts_are_measured_in_a_row_but_for_the_first_which_are_slower() -> None:
    policy = DepthPolicy("auto")
    policy.depth(sequence())
    policy.observe(*idle_round(0, finish=RUNNING), 0.001, 0.0, {})
    for round_s in (0.003, 0.0025, 0.002, *[0.001] * BURST):
        assert policy.resting
        policy.observe(*idle_round(0, finish=RUNNING), round_s, 0.0, {})
    policy.observe(*idle_round(0, finish=RUNNING), 0.001, 0.0, {})

    assert not policy.resting
    assert policy._auto.cost.undrafted(1, 10.0) == pytest.approx(0.001, rel=0.05)


def test_where_drafts_pay_and_nothing_changes_rounds_are_learned_from_a_few_at_a_time() -> None:
    policy, looks = DepthPolicy("auto"), 0
    plan = policy._auto.plan

    def counted(*args: Any, **kwargs: Any) -> int:
        nonlocal looks
        looks += 1
        return plan(*args, **kwargs)

    policy._auto.plan = counted  # type: ignore[method-assign]
    play(policy, None, 200, step_s=0.001, accept_all=True)
    before, ledger = looks, policy._auto.account.ledger.level
    play(policy, None, 64, step_s=0.001, accept_all=True)

    assert looks - before <= 16
    assert policy._auto.account.ledger.level >= ledger


def test_rounds_that_lose_are_learned_from_sooner() -> None:
    policy = taught()
    drafts = {0: alike(4, 3.0)}
    heard = []
    for _ in range(12):  # three times an undrafted round's time for one token
        policy.observe(*seen(0, 4, 0), round_s=0.030, draft_s=0.001, drafts=drafts)
        policy.worthwhile(drafts)
        heard.append(len(policy._hearing._heard))

    assert max(heard[2:]) <= 3  # those before them were heard of too


def test_a_sequence_that_comes_is_held_to_the_floor_of_those_that_come_with_it() -> None:
    """Sixteen wait: what their rounds lose is known, though the first of them is asked about alone."""
    policy = DepthPolicy("auto")
    account = policy._auto.account
    account.turn_to(16, heat=1)
    while not account.ledger.stopped:
        account.ledger.settle(worth=1.0, took=3.0)
    account.turn_to(1, heat=1)
    alone = policy.follows(sequence(sequence_id=1))
    policy.expected = 16

    assert alone
    assert not policy.follows(sequence(sequence_id=2))


def test_rounds_between_two_looks_go_into_the_ledger_of_those_that_lived_then() -> None:
    """A hot text beside a greedy one ends in the round that is looked at."""
    policy, booked = taught(), []
    account = policy._auto.account
    account.count = lambda *told: booked.append(account._turned_to)  # type: ignore[method-assign]
    hot = sequence(sequence_id=9)
    hot.request = dataclasses.replace(hot.request, params=dataclasses.replace(hot.request.params, temperature=2.0))
    policy.depth(hot)
    policy._hearing.turn()
    policy.observe(*seen(0, 3, 3), 0.014, 0.001)
    booked.clear()
    lane = policy._hearing._lanes[0]
    heat = lane.heat
    lane.pass_over(*seen(0, 3, 3), 0.014, 0.010)
    policy.forget(9)
    policy.observe(*seen(0, 3, 3, finish=STOPPED), 0.014, 0.001)

    assert heat == 2
    assert [told for _, told in booked] == [2]


def in_lane(lane: int) -> tuple[Round, Verdict]:
    round, verdict = seen(lane, 3, 3)
    return dataclasses.replace(round, lane=lane), verdict


def test_of_many_lanes_each_is_planned_at_every_look() -> None:
    policy = DepthPolicy("auto")
    for lane in range(9):
        policy.depth(sequence(sequence_id=lane))
    for number in range(200):
        policy.observe(*in_lane(number % 9), 0.014, 0.001, {number % 9: Drafts([5], [3.0])})
    lanes = policy._hearing._lanes

    assert len(lanes) == 9
    assert max(lane.heard for lane in lanes.values()) <= 8


def test_a_sequence_that_comes_makes_no_look_unless_it_changes_whose_ledger_it_is() -> None:
    policy = taught()
    policy.observe(*seen(0, 0, 0), 0.010, 0.001)
    hearing = policy._hearing
    hearing._lanes[0].holds = 8
    policy.observe(*seen(0, 3, 3), 0.014, 0.001)
    heard = len(hearing._heard)
    hot = sequence(sequence_id=9)
    hot.request = dataclasses.replace(hot.request, params=dataclasses.replace(hot.request.params, temperature=2.0))

    policy.depth(sequence(sequence_id=8))
    assert len(hearing._heard) == heard > 0

    policy.depth(hot)
    assert not hearing._heard
