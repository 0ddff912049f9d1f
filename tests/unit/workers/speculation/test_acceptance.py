"""How likely drafts are accepted: by confidence, position and the sequence's own history."""

import random

import pytest

from outrider.workers.speculation.acceptance import Acceptance, History, Kind, Made

GREEDY, DRAWN = Kind("mtp", 0), Kind("mtp", 1)


def play(acceptance: Acceptance, sequence_id: int, leads: list[float], accepted: int, kind: Kind = DRAWN) -> None:
    """One round of a sequence, whose drafts were all verified."""
    acceptance.judged([Made(sequence_id, kind, leads)])
    acceptance.observe([(acceptance.take([sequence_id])[sequence_id], min(len(leads), accepted + 1), accepted, True)])


def first(acceptance: Acceptance, lead: float, sequence_id: int = 999, kind: Kind = DRAWN) -> float:
    return float(acceptance.judged([Made(sequence_id, kind, [lead])])[0, 0])


def test_a_wider_lead_is_a_likelier_draft() -> None:
    chances = [first(Acceptance(4), lead) for lead in (0.0, 0.5, 2.0, 6.0)]

    assert chances == sorted(chances)
    assert chances[0] < 0.5
    assert chances[-1] > 0.9


def test_a_draft_survives_only_with_all_before_it() -> None:
    survivals = Acceptance(4).judged([Made(0, DRAWN, [1.0, 1.0, 1.0])])[0]
    alone = Acceptance(4).judged([Made(0, DRAWN, [1.0])])[0]

    assert survivals[0] == pytest.approx(alone[0])
    assert survivals[0] > survivals[1] > survivals[2]


def test_a_lone_sequence_is_judged_as_in_company() -> None:
    acceptance = Acceptance(8)
    for _ in range(5):
        play(acceptance, 3, [2.0, 0.7], 0)
    made = Made(3, DRAWN, [2.0, 0.7, 30.0])

    together = acceptance.judged([Made(4, GREEDY, [1.0]), made])[1].tolist()

    assert acceptance.judged_alone(made) == pytest.approx(together)
    assert acceptance.foreseen_alone(3, DRAWN) == pytest.approx(acceptance.foreseen([(3, DRAWN)])[0].tolist())


def test_sequences_with_fewer_drafts_have_none_beyond_their_last() -> None:
    survivals = Acceptance(4).judged([Made(0, DRAWN, [1.0, 1.0]), Made(1, DRAWN, [1.0]), Made(2, DRAWN, [])])

    assert (survivals > 0).tolist() == [[True, True], [True, False], [False, False]]


def test_a_sequence_of_which_the_drafter_missed_a_part_tells_nothing_of_others() -> None:
    acceptance = Acceptance(4)
    before, other = first(acceptance, 2.0), acceptance.foreseen_alone(999, DRAWN)
    for _ in range(100):
        acceptance.judged([Made(7, DRAWN, [2.0])])
        acceptance.observe([(acceptance.take([7])[7], 1, 0, False)])

    assert first(acceptance, 2.0) == before
    assert acceptance.foreseen_alone(999, DRAWN) == other
    assert first(acceptance, 2.0, sequence_id=7) < before / 2


def test_it_learns_how_often_drafts_of_a_lead_stand() -> None:
    draw, acceptance = random.Random(1), Acceptance(4)
    for number in range(4000):
        lead = draw.choice([0.5, 3.0])
        play(acceptance, number, [lead], int(draw.random() < {0.5: 0.2, 3.0: 0.7}[lead]))
        acceptance.forget(number)

    assert first(acceptance, 0.5) == pytest.approx(0.2, abs=0.07)
    assert first(acceptance, 3.0) == pytest.approx(0.7, abs=0.07)
    assert first(acceptance, 3.0, kind=GREEDY) == first(Acceptance(4), 3.0, kind=GREEDY)


def test_a_new_sequence_is_the_fleets_mean() -> None:
    draw, acceptance = random.Random(1), Acceptance(4)
    for number in range(3000):
        play(acceptance, number % 7, [2.0], int(draw.random() < 0.3))

    assert acceptance.foreseen([(100, DRAWN)])[0, 0] == pytest.approx(0.3, abs=0.06)


def test_a_sequences_own_history_is_believed_little_by_little() -> None:
    acceptance = Acceptance(4)
    before = acceptance.foreseen([(7, DRAWN)])[0, 0]
    chances = []
    for _ in range(20):
        play(acceptance, 7, [2.0], 0)
        chances.append(float(acceptance.foreseen([(7, DRAWN)])[0, 0]))

    assert before > chances[0] > 0.7 * before
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 0.3 * before
    assert acceptance.foreseen([(8, DRAWN)])[0, 0] > chances[-1]


def test_a_sequence_that_changes_is_followed() -> None:
    history = History()
    for _ in range(100):
        history.observe(0, 1, 0.7)
    for _ in range(40):
        history.observe(3, 3, 2.1)

    assert history.offset > 0


def test_drafts_after_the_first_miss_teach_nothing() -> None:
    short, long = Acceptance(8), Acceptance(8)
    for _ in range(200):
        play(short, 0, [1.0, 0.2], accepted=1)
        play(long, 0, [1.0, 0.2, 5.0, 5.0], accepted=1)

    assert first(short, 5.0) == first(long, 5.0)


def test_a_draft_that_was_never_judged_counts_neither_way() -> None:
    acceptance = Acceptance(4)
    before = first(acceptance, 2.0, sequence_id=7)
    for _ in range(60):
        acceptance.judged([Made(7, DRAWN, [2.0])])
        acceptance.observe([(acceptance.take([7])[7], 0, 0, True)])

    assert first(acceptance, 2.0, sequence_id=7) == before


def test_what_ended_is_forgotten() -> None:
    acceptance = Acceptance(4)
    for _ in range(30):
        play(acceptance, 7, [2.0], 0)
    acceptance.forget(7)
    acceptance.forget(7)

    assert len(acceptance) == 0
    assert acceptance.foreseen([(7, DRAWN)])[0, 0] == acceptance.foreseen([(8, DRAWN)])[0, 0]


def test_deeper_positions_are_learned_apart_from_the_first() -> None:
    draw, acceptance = random.Random(3), Acceptance(3)
    for number in range(3000):
        accepted = 0
        while accepted < 3 and draw.random() < (0.9, 0.5, 0.5)[accepted]:
            accepted += 1
        play(acceptance, number, [2.0] * 3, accepted)
        acceptance.forget(number)
    one, two, three = acceptance.foreseen([(10_000, DRAWN)])[0].tolist()

    assert one == pytest.approx(0.9, abs=0.05)
    assert two == pytest.approx(0.45, abs=0.06)
    assert three == pytest.approx(0.225, abs=0.06)


def test_drafts_that_are_never_worth_verifying_make_later_ones_less_likely() -> None:
    acceptance = Acceptance(4)
    before = acceptance.foreseen_alone(7, DRAWN)[0]
    for _ in range(20):
        acceptance.judged([Made(7, DRAWN, [0.0])])
        acceptance.passed_over(7)

    assert acceptance.foreseen_alone(7, DRAWN)[0] < 0.7 * before
    assert acceptance.foreseen_alone(8, DRAWN)[0] == before
