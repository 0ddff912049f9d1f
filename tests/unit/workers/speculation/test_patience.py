"""When drafting ends before its depth."""

import numpy as np
import pytest

from outrider.workers.speculation.acceptance import Acceptance, Kind, Made
from outrider.workers.speculation.patience import ENDLESS, Drafted, Patience, made_together
from outrider.workers.types.round import Round, ints, share_of

DRAWN = Kind("mtp", 1)
LEADS = [3.0, 0.7, 30.0, 0.1]


def test_a_draft_is_as_likely_to_stand_as_it_is_judged_to_be_later() -> None:
    acceptance = Acceptance(4)
    for _ in range(30):
        acceptance.judged([Made(7, DRAWN, [0.5, 0.5])])
        acceptance.observe([(acceptance.take([7])[7], 1, 0, True)])
    patience = acceptance.patience(7, DRAWN, 0.2, 0.1)

    chances = [patience.chance(lead, first=number == 0) for number, lead in enumerate(LEADS)]

    assert np.cumprod(chances) == pytest.approx(acceptance.judged_alone(Made(7, DRAWN, LEADS)))


def made_alone(patience: Patience, leads: list[float]) -> int:
    return made_together([patience], [leads])[0]


def plain(each: float, step: float = 0.0) -> Patience:
    """Of a draft's lead alone; another stands half the time."""
    return Patience(0.0, 1.0, 0.0, 0.0, 0.5, each, step)


def test_it_goes_on_for_as_long_as_another_draft_should_bring_what_it_costs() -> None:
    assert made_alone(plain(0.01), [5.0, 5.0, 5.0]) == 3
    assert made_alone(plain(0.45), [5.0, 0.0, 5.0]) == 2
    assert made_alone(plain(0.45), [0.0, 5.0]) == 1
    assert made_alone(plain(0.25, step=0.2), [5.0, 0.0, 5.0]) == 2
    assert made_alone(ENDLESS, [0.0] * 9) == 9


def test_the_dearer_a_row_the_sooner_it_ends() -> None:
    acceptance = Acceptance(8)
    leads = [2.0] * 8

    made = [made_alone(acceptance.patience(1, DRAWN, price, 0.0), leads) for price in (0.01, 0.2, 0.4, 0.8)]

    assert made == sorted(made, reverse=True)
    assert made[0] == 8
    assert made[-1] == 1


def test_one_whose_drafts_hardly_stood_of_late_is_given_up_sooner() -> None:
    acceptance = Acceptance(8)
    for sequence_id, accepted in ((1, 0), (2, 4)):
        for _ in range(8):
            made = Made(sequence_id, DRAWN, [1.0] * 4)
            acceptance.observe([(made, min(accepted + 1, 4), accepted, True)])
    doubted, trusted = (acceptance.patience(each, DRAWN, 0.1, 0.0) for each in (1, 2))

    assert doubted.further < trusted.further


def test_each_sequence_ends_by_itself_where_steps_are_for_free() -> None:
    patience = np.array([plain(0.45), ENDLESS, plain(0.25)])
    drafted = Drafted(patience, [9, 9, 9])

    assert drafted.over(np.arange(3), [0.0, 0.0, 1.0]) == [True, False, False]
    assert drafted.over(np.array([1, 2]), [0.0, 0.0]) == [False, True]
    assert Drafted(None, [9, 9]).over(np.arange(2), [0.0, 0.0]) == [False, False]


def test_a_step_is_made_while_all_that_draft_in_it_pay_for_it_together() -> None:
    leads, each = [9.0] * 4, plain(0.2, step=0.5)  # brings 0.3 above its own price

    assert made_together([each], [leads]) == [1]
    assert made_together([each] * 2, [leads] * 2) == [4, 4]
    assert made_together([each] * 2, [leads, leads[:2]]) == [2, 2]  # the second has no more to draft
    assert made_together([each, ENDLESS], [leads] * 2) == [4, 4]  # which is made whatever it costs
    assert made_together([each] * 2, [leads, []]) == [1, 0]


def test_it_goes_with_its_sequence_to_the_data_group_that_has_it() -> None:
    round = Round(
        sequence_ids=ints([4, 5]), query_offsets=ints([0, 1, 2]), token_ids=ints([7, 8]), starts=ints([0, 0]),
        write_from=ints([0, 0]), sample_counts=ints([1, 1]), score_counts=ints([0, 0]), next_token_ids=ints([0, 0]),
        block_offsets=ints([0, 1, 2]), block_ids=ints([0, 1]), owners=ints([0, 1]), draft_steps=ints([2, 2]),
        upkeep=ints([1, 1]), followed_from=ints([1, 1]), patience=np.arange(14.0),
    )  # fmt: skip

    assert share_of(round, 1).patience.tolist() == [7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0]
