"""How likely drafts are accepted: by confidence, position and the sequence's own history."""

import math
import random

import numpy as np
import pytest

from outrider.workers.depth.acceptance import Acceptance, DraftKind, MadeDrafts

GREEDY, SAMPLED = DraftKind("mtp", 0), DraftKind("mtp", 1)


def play(acceptance: Acceptance, sequence_id: int, leads: list[float], accepted: int, *, usual: bool = True) -> None:
    """One round of a sequence, whose drafts were all verified."""
    judged = min(len(leads), accepted + 1)
    acceptance.observe(MadeDrafts(sequence_id, SAMPLED, leads), judged, accepted, usual=usual)


def evaluated(acceptance: Acceptance, *made: MadeDrafts) -> list[float]:
    """Of all drafts, sequence by sequence."""
    chances: list[float] = np.hstack(acceptance.evaluate(made)).tolist()
    return chances


def first(acceptance: Acceptance, lead: float, sequence_id: int = 999, kind: DraftKind = SAMPLED) -> float:
    return evaluated(acceptance, MadeDrafts(sequence_id, kind, [lead]))[0]


def predicted(acceptance: Acceptance, sequence_id: int) -> list[float]:
    chances: list[float] = acceptance.predict([(sequence_id, SAMPLED)])[0].tolist()
    return chances


def test_a_wider_lead_is_a_likelier_draft() -> None:
    chances = [first(Acceptance(4), lead) for lead in (0.0, 0.5, 2.0, 6.0)]

    assert chances == sorted(chances)
    assert chances[0] < 0.5
    assert chances[-1] > 0.9


def test_a_draft_is_accepted_only_with_all_before_it() -> None:
    chances = evaluated(Acceptance(4), MadeDrafts(0, SAMPLED, [1.0, 1.0, 1.0]))

    assert chances[0] == pytest.approx(first(Acceptance(4), 1.0))
    assert chances[0] > chances[1] > chances[2]


@pytest.mark.parametrize("drafts", [1, 3, 8])
def test_sequences_are_evaluate_one_as_they_are_together(drafts: int) -> None:
    acceptance, rng = Acceptance(8), random.Random(drafts)
    for sequence_id in range(20):
        play(acceptance, sequence_id, [2.0, 0.7], sequence_id % 3)
    made = [MadeDrafts(n, SAMPLED, [rng.expovariate(0.5) for _ in range(rng.randint(1, drafts))]) for n in range(20)]

    assert evaluated(acceptance, *made) == pytest.approx([each for own in made for each in evaluated(acceptance, own)])
    together = acceptance.predict([(n, SAMPLED) for n in range(20)])
    assert together == pytest.approx(np.array([predicted(acceptance, n) for n in range(20)]))


def test_chances_are_what_becomes_of_drafts_whose_acceptance_is_logistic_in_their_lead() -> None:
    """Log-odds of -1 + 0.9 * lead; every draft is judged before it teaches anything."""
    rng, acceptance = random.Random(0), Acceptance(4)
    believed, came = list[float](), list[bool]()
    for number in range(6000):
        lead = rng.expovariate(0.5)
        accepted = rng.random() < 1.0 / (1.0 + math.exp(1.0 - 0.9 * lead))
        believed.append(first(acceptance, lead, number % 10))
        came.append(accepted)
        play(acceptance, number % 10, [lead], int(accepted))
    late, stood = np.array(believed[2000:]), np.array(came[2000:])

    for low in (0.2, 0.4, 0.6, 0.8):
        part = (late >= low) & (late < low + 0.2)
        assert late[part].mean() == pytest.approx(stood[part].mean(), abs=0.06)


def test_kinds_of_drafts_are_learned_apart() -> None:
    acceptance = Acceptance(4)
    for number in range(1000):
        play(acceptance, number, [3.0], 0)
        acceptance.forget(number)

    assert first(acceptance, 3.0) < 0.2
    assert first(acceptance, 3.0, kind=GREEDY) == first(Acceptance(4), 3.0, kind=GREEDY)


def test_a_sequence_of_which_the_drafter_missed_a_part_tells_nothing_of_others() -> None:
    acceptance = Acceptance(4)
    before, other = first(acceptance, 2.0), predicted(acceptance, 999)
    for _ in range(100):
        play(acceptance, 7, [2.0], 0, usual=False)

    assert first(acceptance, 2.0) == before
    assert predicted(acceptance, 999) == other
    assert first(acceptance, 2.0, sequence_id=7) < before / 2


def test_a_new_sequence_is_like_the_mean() -> None:
    rng, acceptance = random.Random(1), Acceptance(4)
    for number in range(3000):
        play(acceptance, number % 7, [2.0], int(rng.random() < 0.3))

    assert predicted(acceptance, 100)[0] == pytest.approx(0.3, abs=0.06)


def test_a_sequences_own_history_is_believed_little_by_little() -> None:
    acceptance = Acceptance(4)
    before, chances = predicted(acceptance, 7)[0], list[float]()
    for _ in range(20):
        play(acceptance, 7, [2.0], 0)
        chances.append(predicted(acceptance, 7)[0])

    assert before > chances[0] > 0.7 * before
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 0.3 * before
    assert predicted(acceptance, 8)[0] > chances[-1]


def test_a_sequence_that_changes_is_followed() -> None:
    acceptance = Acceptance(4)
    for accepted in (*[0] * 100, *[3] * 40):
        play(acceptance, 7, [2.0] * 3, accepted)

    assert predicted(acceptance, 7)[0] > 0.8


def test_drafts_after_the_first_that_was_rejected_teach_nothing() -> None:
    short, long = Acceptance(8), Acceptance(8)
    for _ in range(200):
        play(short, 0, [1.0, 0.2], accepted=1)
        play(long, 0, [1.0, 0.2, 5.0, 5.0], accepted=1)

    assert first(short, 5.0) == first(long, 5.0)


def test_deeper_positions_are_learned_apart_from_the_first() -> None:
    rng, acceptance = random.Random(3), Acceptance(3)
    for number in range(3000):
        accepted = next((n for n, chance in enumerate((0.9, 0.5, 0.5)) if rng.random() >= chance), 3)
        play(acceptance, number, [2.0] * 3, accepted)
        acceptance.forget(number)

    assert predicted(acceptance, 10_000) == pytest.approx([0.9, 0.45, 0.225], abs=0.06)


def test_drafts_that_are_never_worth_verifying_make_later_ones_less_likely() -> None:
    acceptance = Acceptance(4)
    before = predicted(acceptance, 7)[0]
    for _ in range(20):
        acceptance.observe_unverified(MadeDrafts(7, SAMPLED, [0.0]))

    assert predicted(acceptance, 7)[0] < 0.7 * before
    assert predicted(acceptance, 8)[0] == before


def test_what_ended_is_forgotten() -> None:
    acceptance = Acceptance(4)
    for _ in range(30):
        play(acceptance, 7, [2.0], 0)
    acceptance.forget(7)
    acceptance.forget(7)

    assert len(acceptance) == 0
    assert predicted(acceptance, 7) == predicted(acceptance, 8)
