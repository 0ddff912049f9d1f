"""When drafting ends before its depth. That compiled kernels end it at the same places: tests/parity."""

import numpy as np
import pytest

from outrider.workers.depth.acceptance import Acceptance, DraftKind, MadeDrafts
from outrider.workers.drafting.stopping import StopTracker, made_together
from outrider.workers.types.rounds.round import Round, ints, share_of
from outrider.workers.types.rounds.stop_rule import NEVER_STOP, StopRule

KIND = DraftKind("mtp", 1)
LEADS = [3.0, 0.7, 30.0, 0.1]


def made_alone(rule: StopRule, leads: list[float]) -> int:
    return made_together([rule], [leads])[0]


def by_lead(each: float, step: float = 0.0) -> StopRule:
    """Of a draft's lead alone; another is accepted half the time."""
    return StopRule(0.0, 1.0, 0.0, 0.0, 0.5, each, step)


def test_a_draft_is_as_likely_to_be_accepted_as_it_is_judged_to_be_later() -> None:
    acceptance = Acceptance(4)
    for _ in range(30):
        acceptance.observe(MadeDrafts(7, KIND, [0.5, 0.5]), 1, 0, usual=True)
    rule = acceptance.stop_rule(7, KIND, 0.2, 0.1)

    chances = [rule.chance(lead, first=number == 0) for number, lead in enumerate(LEADS)]

    assert np.cumprod(chances) == pytest.approx(acceptance.evaluate_one(MadeDrafts(7, KIND, LEADS)))


def test_it_goes_on_for_as_long_as_another_draft_should_bring_what_it_costs() -> None:
    assert made_alone(by_lead(0.01), [5.0, 5.0, 5.0]) == 3
    assert made_alone(by_lead(0.45), [5.0, 0.0, 5.0]) == 2
    assert made_alone(by_lead(0.45), [0.0, 5.0]) == 1
    assert made_alone(by_lead(0.25, step=0.2), [5.0, 0.0, 5.0]) == 2
    assert made_alone(NEVER_STOP, [0.0] * 9) == 9


def test_the_dearer_a_row_the_sooner_it_ends() -> None:
    acceptance = Acceptance(8)
    made = [made_alone(acceptance.stop_rule(1, KIND, price, 0.0), [2.0] * 8) for price in (0.01, 0.2, 0.4, 0.9)]

    assert made == sorted(made, reverse=True)
    assert (made[0], made[-1]) == (8, 1)


def test_a_sequence_whose_drafts_are_hardly_accepted_is_given_up_sooner() -> None:
    acceptance = Acceptance(8)
    for sequence_id, accepted in ((1, 0), (2, 4)):
        for _ in range(8):
            acceptance.observe(MadeDrafts(sequence_id, KIND, [1.0] * 4), min(accepted + 1, 4), accepted, usual=True)
    doubted, trusted = (acceptance.stop_rule(each, KIND, 0.1, 0.0) for each in (1, 2))

    assert doubted.further < trusted.further


def test_each_sequence_ends_by_itself_where_steps_are_for_free() -> None:
    tracker = StopTracker([by_lead(0.45), NEVER_STOP, by_lead(0.25)], [9, 9, 9])

    assert tracker.ended(np.arange(3), [0.0, 0.0, 1.0]) == [True, False, False]
    assert tracker.ended(np.array([1, 2]), [0.0, 0.0]) == [False, True]
    assert StopTracker(None, [9, 9]).ended(np.arange(2), [0.0, 0.0]) == [False, False]


def test_a_step_is_made_while_all_that_draft_in_it_pay_for_it_together() -> None:
    leads, each = [9.0] * 4, by_lead(0.2, step=0.5)  # brings 0.3 above its own price

    assert made_together([each], [leads]) == [1]
    assert made_together([each] * 2, [leads] * 2) == [4, 4]
    assert made_together([each] * 2, [leads, leads[:2]]) == [2, 2]  # the second has no more to draft
    assert made_together([each, NEVER_STOP], [leads] * 2) == [4, 4]  # which is made whatever it costs
    assert made_together([each] * 2, [leads, []]) == [1, 0]


def test_a_rule_goes_with_its_sequence_to_the_data_group_that_has_it() -> None:
    round = Round(
        sequence_ids=ints([4, 5]), query_offsets=ints([0, 1, 2]), token_ids=ints([7, 8]), starts=ints([0, 0]),
        write_from=ints([0, 0]), sample_counts=ints([1, 1]), score_counts=ints([0, 0]), next_token_ids=ints([0, 0]),
        block_offsets=ints([0, 1, 2]), block_ids=ints([0, 1]), owners=ints([0, 1]), draft_steps=ints([2, 2]),
        follows=ints([1, 1]), followed_from=ints([1, 1]), stop_rules=np.arange(14.0),
    )  # fmt: skip

    assert share_of(round, 1).stop_rules.tolist() == [7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0]
