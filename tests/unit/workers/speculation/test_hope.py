"""Who is followed, and who is asked again."""

from itertools import pairwise

from outrider.workers.speculation.hope import Hope


def hopeless(rounds: int) -> tuple[list[int], list[bool]]:
    """Rounds in which a sequence that never pays was tried, and whether it was followed in each."""
    hope, tried, followed = Hope(), [], []
    for number in range(rounds):
        followed.append(hope.followed)
        if hope.due:
            tried.append(number)
            hope.tried()
        else:
            hope.passed()
    return tried, followed


def test_a_new_sequence_is_tried_a_few_times_at_once() -> None:
    assert hopeless(20)[0] == [0, 1]


def test_one_that_does_not_pay_is_asked_again_more_and_more_seldom() -> None:
    tried, _ = hopeless(3000)
    gaps = [b - a for a, b in pairwise(tried) if b - a > 1]

    assert gaps == sorted(gaps)
    assert gaps[0] <= 64 < gaps[-1]
    assert len(tried) < 40


def test_it_is_let_go_between_and_followed_ahead_of_a_try() -> None:
    tried, followed = hopeless(3000)

    assert sum(followed) < 0.15 * len(followed)
    assert all(followed[number - ahead] for number in tried[2:] for ahead in (0, 1, 2))


def test_while_no_trial_can_be_afforded_it_is_not_followed_for_one() -> None:
    hope, followed = Hope(), []
    for _ in range(200):
        hope.passed(trial=False)
        followed.append(hope.followed)
    waits = hope.waits
    hope.passed()

    assert not any(followed[8:])
    assert waits == 1
    assert hope.followed


def test_one_whose_draft_stands_against_expectation_is_tried_again_at_once() -> None:
    hope = Hope()
    for _ in range(20):
        hope.tried() if hope.due else hope.passed()
    assert not hope.due

    hope.stood()

    assert hope.due
    assert hope.followed
    hope.tried()
    assert not hope.due


def test_one_that_lived_through_a_stop_is_not_taken_for_a_new_one() -> None:
    """What was not followed is drafted for in vain, whatever others' drafts bring."""
    hope = Hope()
    hope.let_go()

    assert not hope.followed
    assert not hope.due
    hope.passed(64)
    assert hope.due


def test_one_that_pays_is_always_followed() -> None:
    hope = Hope()
    for _ in range(100):
        hope.worth()
        assert hope.followed
        assert not hope.due


def test_how_long_it_is_not_followed_is_known_ahead() -> None:
    hope = Hope()
    while hope.followed:
        hope.passed()
    ahead = hope.waits

    hope.passed(ahead - 1)
    assert not hope.followed
    hope.passed()
    assert hope.followed
    assert hope.waits == 0
