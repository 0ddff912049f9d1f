"""The decisions of one replica, one at a time. How they do over many rounds: tests/unit/benchmarks."""

import itertools

import pytest

from outrider.workers.speculation.acceptance import Kind, Made
from outrider.workers.speculation.auto_depth import DEEPEST, AutoDepth, Outcome
from outrider.workers.speculation.base_rounds import BURST, CALM
from outrider.workers.speculation.hope import Hope
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.ledger import Ledger
from outrider.workers.speculation.patience import ENDLESS, Patience
from outrider.workers.speculation.planning import Depths
from outrider.workers.speculation.worths import Live

DRAWN = Kind("mtp", 1)
SURE, DOUBTFUL = 12.0, 0.0


def round_of(sequences: int, drafts: int, *, steps: int = 0) -> tuple[Shape, float, float]:
    """A shape and what it takes where a row costs a fifth of a round and a step a tenth."""
    rows = sequences + drafts
    shape = Shape(sequences, rows, 100.0 * sequences, 100.0 * rows, steps, steps * sequences, rows)
    return shape, 0.010 + 0.002 * rows, 0.0005 + 0.001 * steps


def taught(rounds: int = 200, *, stands: bool = True, sequences: int = 1) -> AutoDepth:
    """After rounds of 0..4 drafts, which all stand or none does, and now and then some without in a row.

    Nothing is left to be spent on trying things.
    """
    auto = AutoDepth()
    for number in itertools.count():
        auto.plan([Live(s, DRAWN, 100) for s in range(sequences)])
        if number >= rounds and not auto.resting:
            break
        drafts = 0 if auto.resting else number % 5
        if drafts:
            auto.keep([Made(s, DRAWN, [3.0] * drafts) for s in range(sequences)], round_of(sequences, 0)[0])
        outcomes = [Outcome(s, drafts, drafts if stands else 0) for s in range(sequences)]
        tokens = sum(1 + each.accepted for each in outcomes)
        shape, round_s, draft_s = round_of(sequences, drafts * sequences, steps=drafts)
        auto.observe(outcomes, shape, tokens, round_s, draft_s)
    auto.account.ledger._credit = 0.0
    return auto


def depth(auto: AutoDepth, sequence_id: int = 0) -> int:
    live = Live(sequence_id, DRAWN, 100)
    auto.plan([live])
    return auto.depth(live.sequence_id)


def test_it_drafts_deep_where_drafts_stand() -> None:
    assert depth(taught()) >= 5


def test_it_does_not_draft_where_they_never_do() -> None:
    auto = taught(stands=False)

    assert [depth(auto) for _ in range(20)][5:] == [0] * 15


def test_a_sequence_that_is_new_is_tried_even_where_others_fail() -> None:
    auto = taught(25, stands=False)
    auto.account.ledger = Ledger()

    assert max(depth(auto, sequence_id=5) for _ in range(3)) >= 1


def test_before_anything_is_known_it_measures_a_round_without_drafts_and_then_drafts() -> None:
    auto, shape = AutoDepth(), round_of(1, 0)
    depths = []
    for _ in range(12):
        depths.append(depth(auto))
        auto.observe([Outcome(0, 0, 0)], *shape[:1], 1, *shape[1:])

    assert depths[0] == 0
    assert max(depths) >= 1


def test_of_made_drafts_the_sure_ones_are_verified() -> None:
    auto = taught()
    made = [Made(0, DRAWN, [SURE, SURE, DOUBTFUL, DOUBTFUL, DOUBTFUL]), Made(1, DRAWN, [DOUBTFUL] * 5)]

    kept = auto.keep(made, round_of(2, 0)[0])

    assert kept[0] >= 2
    assert kept[1] < kept[0]


def test_the_busier_the_engine_the_fewer_are_verified() -> None:
    """With a fixed part that many sequences share, a second is worth more tokens, and a row as long as before."""
    alone, crowd = taught(), taught(sequences=16)
    leads = [6.0, 4.0, 2.0, 1.0, 0.5]

    few = alone.keep([Made(0, DRAWN, leads)], round_of(1, 0)[0])[0]
    many = crowd.keep([Made(s, DRAWN, leads) for s in range(16)], round_of(16, 0)[0])[0]

    assert many < few


def test_what_a_sequence_was_never_told_of_its_last_drafts_is_not_counted() -> None:
    auto = taught()
    before = depth(auto, 7)
    for _ in range(50):
        auto.keep([Made(7, DRAWN, [3.0])], round_of(1, 0)[0])
        auto.learn_acceptance([Outcome(7, 1, 0, finished=True)])

    assert depth(auto, 7) == before


def test_a_forgotten_sequence_begins_anew() -> None:
    auto = taught()
    for _ in range(30):
        auto.keep([Made(7, DRAWN, [3.0] * 3)], round_of(1, 0)[0])
        auto.learn_acceptance([Outcome(7, 3, 0)])
    assert depth(auto, 7) < depth(auto, 8)

    auto.forget(7)
    auto.forget(7)

    assert depth(auto, 7) == depth(auto, 8)


def test_nothing_is_kept_of_what_ended() -> None:
    auto = AutoDepth()
    for sequence_id in range(50):
        depth(auto, sequence_id)
        auto.keep([Made(sequence_id, DRAWN, [1.0])], round_of(1, 0)[0])
        auto.forget(sequence_id)

    assert len(auto) == 0


def test_the_figures_tell_price_gain_and_ledger() -> None:
    figures = taught().figures

    assert figures.gain > 1.2
    assert figures.price > 1 / 0.0125
    assert figures.ledger > 0
    assert not figures.stopped
    assert figures.forecast_error < 0.1


def test_the_draft_of_a_sequence_that_is_tried_is_verified_once_however_unsure_it_is() -> None:
    auto = taught(stands=False)
    sequence_id = 0
    while depth(auto, sequence_id):  # until none of a sequence's drafts is made by what is foreseen of it
        auto.learn_acceptance([Outcome(sequence_id, 4, 0)])
        auto.keep([Made(sequence_id, DRAWN, [DOUBTFUL] * 4)], round_of(1, 0)[0])
    hope = auto.trials._hopes[sequence_id]
    while not hope.due:
        hope.passed()
    auto.account.ledger = Ledger()
    assert depth(auto, sequence_id) == 1
    unsure = [Made(sequence_id, DRAWN, [DOUBTFUL])]

    kept = auto.keep(unsure, round_of(1, 0)[0])
    auto.account.ledger._credit = 0.0

    assert kept == [1]
    assert auto.keep(unsure, round_of(1, 0)[0]) == [0]


def test_one_that_never_pays_is_let_go_beside_one_that_does() -> None:
    auto, followed = taught(), []
    for _ in range(120):
        auto.plan([Live(0, DRAWN, 100), Live(1, DRAWN, 100)])
        depths = [auto.depth(s) for s in (0, 1)]
        followed.append(auto.follows(1))
        made = [Made(s, DRAWN, [SURE if s == 0 else DOUBTFUL] * depth) for s, depth in enumerate(depths) if depth]
        kept = auto.keep(made, round_of(2, 0)[0]) if made else []
        counts = dict(zip([each.sequence_id for each in made], kept, strict=True))
        verified = [counts.get(s, 0) for s in (0, 1)]
        outcomes = [Outcome(0, verified[0], verified[0]), Outcome(1, verified[1], 0)]
        shape, round_s, draft_s = round_of(2, sum(verified), steps=max(depths))
        auto.observe(outcomes, shape, 2 + verified[0], round_s, draft_s)

    assert auto.follows(0)
    assert sum(followed[40:]) < 0.5 * len(followed[40:])


def test_a_sequence_pays_for_the_time_of_those_that_share_its_rounds() -> None:
    """Alone its drafts are worth it; beside fifteen that do not draft they hold everybody up."""
    auto = taught(sequences=16)
    live = Live(0, DRAWN, 100)
    for _ in range(6):  # two of three stand
        auto.keep([Made(0, DRAWN, [3.0] * 3)], round_of(1, 0)[0])
        auto.learn_acceptance([Outcome(0, 3, 2)])

    auto.plan([live], round_of(1, 0)[0], measurable=False)
    alone = auto.depth(live.sequence_id)
    auto.plan([live], round_of(16, 0)[0], measurable=False)

    assert auto.depth(live.sequence_id) < alone


def test_lanes_are_measured_at_one_time() -> None:
    auto = AutoDepth()
    for lane, sequences in ((0, 2), (1, 1)):
        auto.plan([Live(10 * lane + s, DRAWN, 100) for s in range(sequences)], lane=lane)
    assert auto.resting
    for lane, sequences in ((0, 2), (1, 1)) * (BURST + CALM):
        shape, round_s, draft_s = round_of(sequences, 0)
        auto.observe([], shape, sequences, round_s, draft_s)
        auto.plan([Live(10 * lane + s, DRAWN, 100) for s in range(sequences)], lane=lane)

    assert not auto.resting


def hopeless() -> AutoDepth:
    """Its one sequence was let go, though there is something left to lose."""
    auto = taught(stands=False)
    auto.account.ledger = Ledger()
    for _ in range(60):
        depth(auto)
        if not auto.follows(0):
            auto.trials._hopes[0] = Hope()  # whatever it waited for before
            auto.trials._hopes[0].let_go()
            return auto
    raise AssertionError("it is followed still")


def test_while_nobody_is_followed_rounds_go_by_unlooked_until_somebody_is_due() -> None:
    auto, looked_at, gone_by = hopeless(), 0, 0
    while not auto.follows(0) and gone_by < 300:
        gone_by += 1
        if auto.sleeps():
            auto.slept([round_of(1, 0)[:2]])
        else:
            looked_at += 1
            depth(auto)

    assert 16 <= gone_by <= 128
    assert looked_at <= gone_by / 8


def test_who_is_to_draft_is_followed_though_let_go() -> None:
    auto = hopeless()
    auto.account.ledger = Ledger()
    auto.trials._hopes[0]._tries = 0  # it could not be afforded when it came
    assert auto.follows(0) is False

    assert depth(auto) == 1
    assert auto.follows(0)


def test_a_sequence_that_comes_is_looked_at() -> None:
    auto = hopeless()
    depth(auto)
    assert auto.sleeps()
    auto.meet(Live(7, DRAWN, 100), room=100)

    assert not auto.sleeps()


def test_a_sequence_that_comes_drafts_at_once_where_drafts_pay() -> None:
    paying, hopeless_too = taught(), hopeless()
    for auto in (paying, hopeless_too):
        auto.meet(Live(7, DRAWN, 100), room=100)

    assert paying.depth(7) == DEEPEST
    assert paying.patience(7) != ENDLESS
    assert hopeless_too.depth(7) == 0


def test_prompts_are_followed_as_far_as_there_is_something_to_lose() -> None:
    auto, prompt = hopeless(), 100
    auto.account.ledger = Ledger()
    undrafted_s = auto.cost.undrafted(1, prompt)
    auto.account.owe(99, prompt, 10.0 * undrafted_s, ends=True)
    for newcomer in range(7, 11):
        auto.meet(Live(newcomer, DRAWN, prompt), room=1000, followed=prompt)
    assert [newcomer for newcomer in range(7, 11) if auto.follows(newcomer)] == [7, 8]

    auto.meet(Live(11, DRAWN, prompt), room=1000, followed=0)  # that no model takes in
    assert auto.follows(11)


def test_prompts_are_followed_where_drafts_pay_whatever_that_takes() -> None:
    auto = taught()
    auto.account.owe(99, 1, 10.0, ends=True)
    auto.meet(Live(7, DRAWN, 100), room=1000, followed=100)

    assert auto.follows(7)


def test_a_sequence_that_comes_to_more_than_it_paid_for_waits_for_their_depths() -> None:
    auto = taught()
    auto.account.turn_to(16, heat=1)
    auto.meet(Live(7, DRAWN, 100), room=100)

    assert auto.depth(7) == 0


def test_after_a_stop_those_that_lived_through_it_are_no_newcomers() -> None:
    auto = taught()
    while not auto.account.ledger.stopped:
        auto.account.ledger.settle(worth=1.0, took=3.0)
    assert depth(auto, 9) == 0
    auto.account.ledger = Ledger()

    assert not auto.follows(9)
    assert auto.follows(10)


@pytest.mark.parametrize(("every_step", "limit"), [(False, DEEPEST), (True, 2)])
def test_where_every_step_is_run_whoever_stops_the_limit_is_the_best_number_of_steps(
    every_step: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several data groups; else a sequence's own patience says when to stop."""
    auto = AutoDepth(every_step=every_step)
    monkeypatch.setattr(auto.account, "base_due", lambda *shape: False)
    monkeypatch.setattr(auto.worths, "best_depths", lambda live, plain, found: Depths([2], gain=0.5, brings=1.5))

    assert depth(auto) == limit


def test_to_go_on_takes_less_of_a_gain_than_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    auto, gains = AutoDepth(), [0.01, 0.5, 0.01, -0.01, 0.01]
    auto.account.ledger._credit = 0.0  # none for rounds at a loss, nor for trying it
    monkeypatch.setattr(auto.account, "base_due", lambda *shape: False)
    monkeypatch.setattr(
        auto.worths, "best_depths", lambda live, plain, found: Depths([2], gain=gains.pop(0), brings=1.5)
    )

    assert [depth(auto) > 0 for _ in range(5)] == [False, True, True, False, False]


def test_of_many_sequences_that_draft_each_hears_that_its_drafts_stand() -> None:
    auto = AutoDepth()
    for each in range(12):
        auto.trials._hopes[each] = Hope()
        auto.trials._hopes[each].passed(3)

    auto.keep([Made(each, DRAWN, [9.0]) for each in range(12)], round_of(12, 0)[0])
    auto.learn_acceptance([Outcome(each, 1, 1) for each in range(12)])

    assert [auto.trials._hopes[each].idle for each in range(12)] == [1] * 12


def test_drafts_of_all_sequences_are_watched_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    auto, watched = AutoDepth(), []
    monkeypatch.setattr(auto.alarms, "judged", lambda made, *_, gap: watched.append(made.sequence_id) or [])
    for _ in range(6):
        auto.keep([Made(each, DRAWN, [9.0]) for each in range(3)], round_of(3, 0)[0])
        auto.learn_acceptance([Outcome(each, 1, 1) for each in range(3)])

    assert sorted(watched) == [0, 0, 1, 1, 2, 2]


def test_of_drafts_that_are_passed_over_some_teach_and_others_in_the_next_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auto, taught_by = taught(stands=False, sequences=6), []
    auto.trials._trying.clear()
    auto.trials._in_vain = 0
    monkeypatch.setattr(auto.acceptance, "passed_over", taught_by.append)
    for _ in range(3):  # depths hold: nothing is learned from rounds in between
        assert not any(auto.keep([Made(each, DRAWN, [DOUBTFUL]) for each in range(6)], round_of(6, 0)[0]))

    assert sorted(taught_by) == [0, 1, 2, 3, 4, 5]


def test_what_was_paid_for_rounds_at_a_loss_that_never_ran_is_given_back() -> None:
    """A newcomer sets depths anew after one round of four."""
    auto = AutoDepth()
    before = auto.account.ledger._credit
    assert auto.trials.pay_ahead(0, 0.2)
    paid = before - auto.account.ledger._credit

    auto.trials.settle_ahead(1, 1)  # another lane's
    auto.trials.settle_ahead(0, 1)
    auto.trials.settle_ahead(0, 1)

    assert paid == pytest.approx(4 * 0.2)
    assert before - auto.account.ledger._credit == pytest.approx(0.2)


def test_drafts_that_do_not_pay_for_their_deciding_do_not_pay() -> None:
    cheap, dear = taught(), taught()
    plain = round_of(1, 0)[0]
    live = [Live(0, DRAWN, 100)]
    cheap.worths.price_of(live, plain)
    dear.cost.decided([10.0, 10.0, 10.0])
    dear.worths.price_of(live, plain)

    assert cheap.worths.best_depths(live, plain).gain > 0.0
    assert dear.worths.best_depths(live, plain).gain < 0.0


def test_what_lookup_finds_makes_no_time_dearer_for_models() -> None:
    """Not the drafts' patience either; of looked-up rows themselves fewer are worth it."""
    auto, live, plain = taught(), [Live(0, DRAWN, 100)], round_of(1, 0)[0]
    auto.worths.found.meet(0)

    def asked() -> tuple[Depths, Patience, int]:
        found = auto.worths.price_of(live, plain)
        depths = auto.worths.best_depths(live, plain)
        kept, _ = auto.worths.looked_up([0.8] * 16)
        return depths, auto.worths.patience(live[0]), kept if found.share else 16

    before = asked()
    for _ in range(20):
        auto.worths.found.add(0, 8, 7.5)
    depths, patience, kept = asked()

    assert (depths, patience) == before[:2]
    assert 0 < kept < 16


def test_a_newcomer_that_lookup_should_carry_is_not_drafted_for() -> None:
    auto = taught()
    for number in range(400):
        auto.worths.found.meet(number)
        for _ in range(3):
            auto.worths.found.add(number, 8, 7.0)
    auto.worths.found.meet(1000)
    auto.meet(Live(1000, DRAWN, 100), room=100)

    assert auto.depth(1000) == 0
