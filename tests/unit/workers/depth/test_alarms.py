"""A broken drafter is noticed and named; hard text is not mistaken for one."""

import random

import pytest

from outrider.workers.depth.acceptance import DraftKind, MadeDrafts
from outrider.workers.depth.alarms import COLLAPSE, DEAD_POSITION, FAILURE, STALE_CACHE, Alarms

KIND = DraftKind("mtp", 1)


def accepted_of(leads: list[float], rng: random.Random, *, scale: float = 1.0) -> int:
    accepted = 0
    while accepted < len(leads) and rng.random() < scale * leads[accepted] / (1.0 + leads[accepted]):
        accepted += 1
    return accepted


def play_dead_from(alarms: Alarms, position: int, rng: random.Random) -> list[str]:
    """Sure drafts, of which those from a position on never stand."""
    said = []
    for _ in range(1500):
        leads = [5.0, 5.0, 5.0]
        accepted = min(accepted_of(leads, rng), position)
        said += alarms.observe(MadeDrafts(1, KIND, leads), min(3, accepted + 1), accepted)
    return said


def play(
    alarms: Alarms, rounds: int, rng: random.Random, *, scale: float = 1.0, hard: bool = False, gap: bool = False
) -> list[str]:
    said = []
    for _ in range(rounds):
        leads = [rng.uniform(0.0, 0.5) if hard else rng.choice((1.0, 5.0, 20.0)) for _ in range(3)]
        accepted = accepted_of(leads, rng, scale=scale)
        said += alarms.observe(MadeDrafts(1, KIND, leads), min(3, accepted + 1), accepted, gap=gap)
    return said


@pytest.mark.parametrize("seed", range(5))
def test_text_that_turns_hard_raises_no_alarm(seed: int) -> None:
    alarms, rng = Alarms(), random.Random(seed)
    said = [text for hard in (False, True, False, True) for text in play(alarms, 2000, rng, hard=hard)]

    assert said == []
    assert not any(alarms.counts.values())


@pytest.mark.parametrize("seed", range(5))
def test_confident_drafts_that_fail_are_named_once_and_counted_for_as_long(seed: int) -> None:
    alarms, rng = Alarms(), random.Random(seed)
    play(alarms, 3000, rng)
    said = play(alarms, 3000, rng, scale=0.2)

    assert len(said) == 1
    assert "hidden states" in said[0]
    assert alarms.counts[COLLAPSE] > 3


def test_a_position_that_is_never_accepted_is_named() -> None:
    alarms = Alarms()
    said = play_dead_from(alarms, 1, random.Random(0))

    assert [text for text in said if text.startswith("draft 2 of mtp")]
    assert alarms.counts[DEAD_POSITION] > 0


def test_sequences_that_were_not_followed_from_the_start_are_held_against_those_that_were() -> None:
    alarms, rng = Alarms(), random.Random(0)
    play(alarms, 2000, rng)
    said = play(alarms, 1000, rng, scale=0.3, gap=True)

    assert [text for text in said if "follow from the start" in text]
    assert alarms.counts[STALE_CACHE] > 0
    assert play(Alarms(), 1000, rng, gap=True) == []


@pytest.mark.parametrize("seed", range(5))
def test_hard_text_of_sequences_that_were_not_followed_raises_no_alarm(seed: int) -> None:
    alarms, rng = Alarms(), random.Random(seed)
    play(alarms, 2000, rng)

    assert play(alarms, 2000, rng, hard=True, gap=True) == []
    assert not any(alarms.counts.values())


def test_a_position_that_worked_and_works_no_more_is_named_for_as_long() -> None:
    alarms, rng = Alarms(), random.Random(0)
    play(alarms, 2000, rng)
    said = play_dead_from(alarms, 1, rng)

    assert [text for text in said if text.startswith("draft 2 of mtp")]
    assert alarms.counts[DEAD_POSITION] > 3


def test_a_first_draft_that_is_never_accepted_has_a_cause_of_its_own() -> None:
    alarms = Alarms()
    said = [text for _ in range(500) for text in alarms.observe(MadeDrafts(1, KIND, [5.0, 5.0]), 1, 0)]

    assert [text for text in said if text.startswith("draft 1 of mtp") and "hidden states" in text]
    assert "before it" not in said[0]


def test_a_drafter_that_fails_is_said_once_and_counted() -> None:
    alarms = Alarms()

    assert "out of memory" in alarms.failed("mtp", "out of memory")[0]
    assert alarms.failed("mtp", "out of memory") == []
    assert alarms.counts[FAILURE] == 2
