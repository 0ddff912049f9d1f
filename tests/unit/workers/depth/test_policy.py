"""Whose word counts: the engine's setting, the request's, and the price of time."""

import random
from dataclasses import replace

import pytest
from unit.workers.depth.fake_replica import Machine, Replica, Texts

from outrider.workers.depth.auto import DEEPEST
from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import AUTO, DRAFT_MODEL, LOOKUP, MTP, SamplingParams
from outrider.workers.types.rounds.draft_plan import NO_DRAFTS, DraftPlan
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import RUNNING, Round, Verdict, ints, offsets
from outrider.workers.types.rounds.round_time import RoundTiming
from outrider.workers.types.rounds.sequence import Sequence

CHEAP, DEAR = Machine(row=0.0003, step=0.0003), Machine(row=0.0003, step=0.05)


def sequence(sequence_id: int = 0, **params: object) -> Sequence:
    request = Request(request_id="r", prompt_token_ids=(3, 4), params=SamplingParams(**params), seed=0)  # type: ignore[arg-type]
    return Sequence(
        sequence_id=sequence_id, request=request, output_index=0, token_ids=[3, 4], limit=100, draft_ceiling=16
    )


def plan(policy: DepthPolicy, sequence_id: int = 0, **params: object) -> DraftPlan:
    """Of a sequence that comes."""
    policy.admit(sequence(sequence_id, **params), together=1)
    return policy.plans.get(sequence_id, NO_DRAFTS)


def running(
    engine: str | int = "auto", machine: Machine = CHEAP, *, models: tuple[str, ...] = (MTP,), **params: object
) -> Replica:
    """One sequence, some rounds long."""
    replica = Replica(DepthPolicy(engine, models=models), machine=replace(machine), texts=Texts(0.95))
    replica.ask(tokens=20_000, **params)
    replica.run(300)
    return replica


def depths(replica: Replica, rounds: int = 100) -> list[int]:
    """Drafts verified, by round."""
    return [ran.round.rows - ran.round.sequences for ran in replica.run(rounds)]


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "request_", "depth"),
    [
        ("off", None, 0), ("off", "auto", 0), ("auto", "off", 0), ("auto", 5, 5), ("auto", 16, 16),
        (3, None, 3), (3, "off", 0), (3, 2, 2), (3, 9, 3), (16, None, 16),
    ],
)  # fmt: skip
def test_the_engine_is_the_ceiling_and_the_request_may_ask_for_less(
    engine: str | int, request_: str | int | None, depth: int
) -> None:
    own = plan(DepthPolicy(engine), speculation=request_)

    assert own.depth == depth
    assert own.follows == (depth > 0)


def test_a_request_may_ask_for_auto_under_a_fixed_ceiling() -> None:
    assert max(depths(running(2, speculation="auto"))) == 2


def test_auto_drafts_deep_where_drafts_are_cheap_and_good() -> None:
    assert sorted(depths(running()))[50] >= 4


def test_auto_does_not_draft_where_drafts_cost_more_than_they_bring() -> None:
    assert depths(running(machine=DEAR)).count(0) > 90


def test_a_fixed_depth_is_verified_whatever_the_confidence() -> None:
    policy = DepthPolicy("auto")
    plan(policy, speculation=4)
    round, verdict = decoded({0: 0})
    doubtful = Drafts([1, 2, 3, 4], [9.0, 0.0, 0.0, 9.0])

    assert policy.observe(round, verdict, 0.01, 0.001, {0: doubtful}) == {0: [1, 2, 3, 4]}


@pytest.mark.parametrize(("models", "params"), [((MTP,), {"drafter": LOOKUP}), ((), {}), ((), {"speculation": 3})])
def test_what_only_looks_up_asks_no_model_for_anything(models: tuple[str, ...], params: dict[str, object]) -> None:
    replica = Replica(DepthPolicy("auto", models=models), machine=replace(CHEAP), texts=Texts(copied=0.9))
    replica.ask(tokens=20_000, **params)
    ran = replica.run(400)

    assert not any(each.drafts for each in ran)
    assert not any(each.round.follows.any() for each in ran)
    assert sum(each.round.rows - 1 for each in ran[200:]) > 2 * 200


def test_without_a_model_looked_up_drafts_need_only_be_worth_their_rows() -> None:
    policy = DepthPolicy("auto", models=())
    plan(policy)

    assert policy.best_model(0, 0, sharing=1) == (None, 0.0)


def test_an_engine_prices_its_first_model_under_auto_alone() -> None:
    assert DepthPolicy("auto", models=(DRAFT_MODEL, MTP)).priced_model == DRAFT_MODEL
    assert DepthPolicy("auto", models=()).priced_model == DepthPolicy(3).priced_model == ""


# One round ------------------------------------------------------------------------------------------------------------


def decoded(verified: dict[int, int], accepted: int = 0, chunk: int = 0) -> tuple[Round, Verdict]:
    """A round of sequences with so many drafts each, of which so many are accepted; `chunk`: rows of a prompt."""
    rows = [*(1 + drafts for drafts in verified.values()), *[chunk] * (chunk > 0)]
    samples = [*rows[: len(verified)], *[0] * (chunk > 0)]
    emitted = [*[1 + accepted] * len(verified), *[0] * (chunk > 0)]
    ids = [*verified, *[99] * (chunk > 0)]
    round = Round(
        sequence_ids=ints(ids), query_offsets=offsets(rows), token_ids=ints([5] * sum(rows)),
        starts=ints([9] * len(ids)), sample_counts=ints(samples), follows=ints([1] * len(ids)),
        followed_from=ints([1] * len(ids)),
    )  # fmt: skip
    verdict = Verdict(
        token_offsets=offsets(emitted), token_ids=ints([5] * sum(emitted)), finish=ints([RUNNING] * len(ids)),
        accepted_rows=ints([*emitted[: len(verified)], *[chunk] * (chunk > 0)]),
        drafts_accepted=ints([*[accepted] * len(verified), *[0] * (chunk > 0)]),
    )  # fmt: skip
    return round, verdict


def test_what_a_round_saved_is_told_beside_one_without_drafts_once_times_are_known() -> None:
    replica = running()
    times = RoundTiming()
    while not times.undrafted_s or not times.took_s:  # not while plain rounds are measured
        ran = replica.round()
        times = replica.policy.time_of(ran.round, 0.01)

    assert DepthPolicy("auto").time_of(ran.round, 0.01) == RoundTiming()
    assert times.took_s >= 0.01
    assert times.undrafted_s == pytest.approx(CHEAP.round_s(1), rel=0.1)


def test_rounds_with_prompt_chunks_say_nothing_of_time() -> None:
    replica = running()
    usual = sorted(depths(replica))[50]
    for _ in range(20):
        replica.ask(prompt=300, tokens=1)
        replica.machine.fixed *= 30.0
        while replica.sequences > 1:
            replica.round()
        replica.machine.fixed /= 30.0

    assert sorted(depths(replica))[50] == pytest.approx(usual, abs=1)


def test_looked_up_drafts_are_verified_as_far_as_they_are_worth_their_rows() -> None:
    policy = running(machine=Machine(row=0.002)).policy

    def kept(*chances: float) -> int:
        return policy.evaluate_lookup(Drafts([5] * len(chances), list(chances), LOOKUP))[0]

    assert kept(0.95, 0.95, 0.95) == 3
    assert kept(0.95, 0.01, 0.95) == 1
    assert kept(0.01) == 0


def test_looked_up_drafts_must_beat_a_models_unless_lookup_suffices_for_the_sequence() -> None:
    policy = running().policy
    copied = Drafts([5] * 6, [0.99] * 6, LOOKUP)
    name, least = policy.best_model(0, 3, sharing=1)
    assert name == MTP
    assert least > policy.best_model(0, 0, sharing=1)[1] > 0.0
    for _ in range(20):
        policy.observe_lookup(0, copied)

    assert policy.best_model(0, 0, sharing=1) == (None, 0.0)


def test_of_two_models_the_one_drafts_whose_drafts_are_accepted() -> None:
    replica = running(models=(MTP, DRAFT_MODEL))
    policy = replica.policy
    assert policy.best_model(0, 3, sharing=1)[0] == MTP
    rng, verified, drafter = random.Random(0), 0, MTP
    for _ in range(800):  # of the second all are accepted, of the first none
        round, verdict = decoded({0: verified}, verified if drafter == DRAFT_MODEL else 0)
        drafter = rng.choice((MTP, DRAFT_MODEL))
        kept = policy.observe(round, verdict, 0.0063, 0.0008, {0: Drafts([5] * 3, [3.0] * 3, drafter)})
        verified = len(kept.get(0, []))

    assert policy.best_model(0, 3, sharing=1)[0] == DRAFT_MODEL


# Many rounds ----------------------------------------------------------------------------------------------------------


def test_a_disturbed_round_is_not_all_booked_as_a_loss_of_drafts() -> None:
    replica = running()
    before = replica.policy.figures.budget
    replica.machine.slower = 50.0
    replica.round()
    replica.machine.slower = 1.0
    replica.run(20)

    assert before - replica.policy.figures.budget < 10.0


def test_a_newcomer_is_drafted_for_at_once_while_others_are() -> None:
    replica = running()
    replica.run(50)
    replica.ask(tokens=100)
    ran = replica.round()

    assert len(ran.round.begins) == 1
    assert ran.round.draft_steps.min() > 0


def test_a_newcomer_is_neither_followed_nor_drafted_for_while_drafting_is_disabled() -> None:
    replica = running(machine=Machine(row=0.003))
    replica.texts = Texts(accepted=0.0, lead=20.0)
    while not replica.policy.figures.disabled_rounds:
        replica.round()
    replica.round()
    own = plan(replica.policy, 1000)

    assert (own.depth, own.follows, own.looks_up) == (0, False, False)


def test_where_data_groups_run_all_steps_no_more_are_asked_for_than_pay() -> None:
    """Stopping spares no step there, so a newcomer waits for a depth too."""
    replica = Replica(DepthPolicy("auto", data_groups=2), machine=replace(CHEAP), texts=Texts(0.7))
    replica.ask(tokens=20_000)
    replica.run(200)
    plans = [replica.policy.plans[0] for _ in replica.run(100)]

    assert {own.stop.step for own in plans} == {0.0}
    assert 0 < max(own.depth for own in plans) < DEEPEST
    assert plan(replica.policy, 1000).depth == 0


def test_of_another_drafter_nothing_is_known_but_what_rounds_take() -> None:
    replica = running()
    replica.policy.failed(MTP, "out of memory")
    replica.policy.begin()

    assert not any(replica.policy.figures.alarms.values())
    assert sum(depths(replica)) > 100
    assert replica.policy.time_of(replica.round().round, 0.01).undrafted_s >= 0.0


def test_a_failure_is_news_once_and_counted() -> None:
    policy = DepthPolicy("auto")

    assert [policy.failed(MTP, "no"), policy.failed(MTP, "no")] == [True, False]
    assert policy.figures.alarms["drafter_failed"] == 2


def test_what_is_wrong_with_a_drafter_is_said_once() -> None:
    """Sure drafts of a fixed depth were accepted, and are not any more."""
    said = list[str]()
    replica = Replica(DepthPolicy("auto", warn=said.append), machine=replace(CHEAP), texts=Texts(0.9, lead=5.0))
    replica.ask(tokens=50_000, speculation=3)
    replica.run(4000)
    replica.texts.accepted = 0.1
    replica.run(4000)

    assert len([text for text in said if "accepted" in text]) == 1


def test_what_ended_is_forgotten_and_what_never_began_too() -> None:
    replica = Replica(DepthPolicy("auto"))
    for _ in range(40):
        replica.ask(prompt=5, tokens=20)
    replica.run(10_000)
    plan(replica.policy, 1000)
    assert replica.policy.sequences == 1
    replica.policy.forget(1000)
    replica.policy.forget(1000)

    assert replica.policy.sequences == 0


def test_sequences_that_do_not_speculate_are_unknown_to_it() -> None:
    policy = DepthPolicy("auto")
    plan(policy, speculation="off")
    policy.observe(*decoded({0: 0}), 0.01, 0.0, {})

    assert policy.sequences == 0
    assert plan(DepthPolicy("off"), speculation=AUTO) == NO_DRAFTS
