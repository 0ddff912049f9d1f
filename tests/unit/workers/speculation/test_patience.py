"""When drafting ends before its depth."""

import numpy as np
import pytest

from outrider.workers.engine.round import Round, ints, share_of
from outrider.workers.speculation.acceptance import Acceptance, Kind, Made
from outrider.workers.speculation.patience import ENDLESS, Drafted, Patience

DRAWN = Kind("mtp", 1)
LEADS = [3.0, 0.7, 30.0, 0.1]


def test_a_draft_is_as_likely_to_stand_as_it_is_judged_to_be_later() -> None:
    acceptance = Acceptance(4)
    for _ in range(30):
        acceptance.judged([Made(7, DRAWN, [0.5, 0.5])])
        acceptance.observe([(acceptance.take([7])[7], 1, 0)])
    patience = acceptance.patience(7, DRAWN, 0.2)

    chances = [patience.chance(lead, first=number == 0) for number, lead in enumerate(LEADS)]

    assert np.cumprod(chances) == pytest.approx(acceptance.judged_alone(Made(7, DRAWN, LEADS)))


def test_it_goes_on_for_as_long_as_all_drafts_so_far_are_likely_enough_to_stand() -> None:
    sure, doubting = Patience(0.0, 1.0, 0.0, 0.0, 0.01), Patience(0.0, 1.0, 0.0, 0.0, 0.9)

    assert sure.made([5.0, 5.0, 5.0]) == 3
    assert doubting.made([5.0, 0.0, 5.0]) == 2
    assert doubting.made([0.0, 5.0]) == 1
    assert ENDLESS.made([0.0] * 9) == 9


def test_the_dearer_a_row_the_sooner_it_ends() -> None:
    acceptance = Acceptance(8)
    leads = [2.0] * 8

    made = [acceptance.patience(1, DRAWN, price).made(leads) for price in (0.01, 0.2, 0.4, 0.8)]

    assert made == sorted(made, reverse=True)
    assert made[0] == 8
    assert made[-1] == 1


def test_of_several_sequences_each_ends_by_itself() -> None:
    patience = np.array([Patience(0.0, 1.0, 0.0, 0.0, 0.9), ENDLESS, Patience(0.0, 1.0, 0.0, 0.0, 0.5)])
    drafted = Drafted(patience, 3)

    assert drafted.over(np.arange(3), [0.0, 0.0, 1.0]) == [True, False, False]
    assert drafted.over(np.array([1, 2]), [0.0, 0.0]) == [False, True]
    assert Drafted(None, 2).over(np.arange(2), [0.0, 0.0]) == [False, False]


def test_it_goes_with_its_sequence_to_the_data_group_that_has_it() -> None:
    round = Round(
        sequence_ids=ints([4, 5]), query_offsets=ints([0, 1, 2]), token_ids=ints([7, 8]), starts=ints([0, 0]),
        write_from=ints([0, 0]), sample_counts=ints([1, 1]), score_counts=ints([0, 0]), next_token_ids=ints([0, 0]),
        block_offsets=ints([0, 1, 2]), block_ids=ints([0, 1]), owners=ints([0, 1]), draft_steps=ints([2, 2]),
        upkeep=ints([1, 1]), followed_from=ints([1, 1]), patience=np.arange(10.0),
    )  # fmt: skip

    assert share_of(round, 1).patience.tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
