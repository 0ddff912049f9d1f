"""Acceptance by position, each given those before it."""

import pytest

from outrider.workers.speculation.acceptance import Acceptance, expected_tokens

PRIOR = [0.6, 0.6, 0.6]


def acceptance(prior_weight: float = 1.0) -> Acceptance:
    return Acceptance(3, memory=1e9, prior_weight=prior_weight)


def test_before_anything_is_seen_the_prior_holds() -> None:
    assert acceptance().rates(PRIOR) == pytest.approx(PRIOR)


def test_a_position_counts_only_rounds_that_reached_it() -> None:
    seen = acceptance(prior_weight=1e-9)
    for accepted in (0, 1, 2, 3):
        seen.observe(3, accepted, finished=False)

    assert seen.rates(PRIOR) == pytest.approx([3 / 4, 2 / 3, 1 / 2])


def test_a_draft_that_was_never_judged_counts_neither_way() -> None:
    seen = acceptance()
    seen.observe(3, 0, finished=True)
    seen.observe(0, 0, finished=False)

    assert seen.rates(PRIOR) == pytest.approx(PRIOR)


def test_what_is_seen_at_one_position_shifts_what_is_believed_of_the_next() -> None:
    seen = acceptance()
    for _ in range(100):
        seen.observe(1, 0, finished=False)

    assert all(rate < 0.05 for rate in seen.rates(PRIOR))


def test_old_rounds_fade() -> None:
    seen = Acceptance(1, memory=20, prior_weight=1)
    for accepted in [0] * 500 + [1] * 60:
        seen.observe(1, accepted, finished=False)

    assert seen.rates([0.5])[0] > 0.85


def test_drafts_deeper_than_what_is_kept_are_counted_as_far_as_it_goes() -> None:
    seen = acceptance()
    seen.observe(16, 9, finished=False)

    assert all(rate > 0.6 for rate in seen.rates(PRIOR))


def test_expected_tokens_are_one_and_the_chance_of_reaching_each_draft() -> None:
    assert expected_tokens([0.5, 0.5, 1.0]) == pytest.approx([1, 1.5, 1.75, 2.0])
    assert expected_tokens([]) == [1.0]
