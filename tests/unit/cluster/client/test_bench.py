"""Arrivals by chance, and what is made of the answers."""

import itertools

import pytest

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.cli.commands.bench import windows
from outrider.cluster.client.bench import Answered, Window, arrivals, percentiles, summary


def test_arrivals_are_the_same_for_the_same_seed_alone() -> None:
    assert arrivals(5, 10, seed=1) == arrivals(5, 10, seed=1)
    assert arrivals(5, 10, seed=1) != arrivals(5, 10, seed=2)


def test_arrivals_come_in_order_and_within_the_time() -> None:
    due = arrivals(5, 10, seed=1)

    assert due == sorted(due)
    assert 0 < due[0] <= due[-1] < 10


def test_arrivals_are_poisson() -> None:
    due = arrivals(20, 1000, seed=3)
    waits = [later - earlier for earlier, later in itertools.pairwise(due)]
    mean = sum(waits) / len(waits)
    variance = sum((wait - mean) ** 2 for wait in waits) / len(waits)

    assert len(due) == pytest.approx(20_000, rel=0.03)
    assert variance**0.5 / mean == pytest.approx(1.0, rel=0.05)


def test_times_are_of_whole_answers_and_the_others_are_counted_by_kind() -> None:
    answers = [
        Answered(messages=[(0.1, 1), (0.3, 2), (0.5, 2)], ended_s=0.6),
        Answered(messages=[(0.2, 1)], ended_s=0.2),
        Answered(messages=[(9.0, 1)], ended_s=9.0, error="UnavailableError"),
        Answered(ended_s=0.1),
    ]

    figures = summary(answers, seconds=2.0)

    assert (figures["requests"], figures["errors"]) == (4, {"UnavailableError": 1, "no tokens": 1})
    assert figures["tokens_per_second"] == 3.0
    assert figures["first_token_s"]["p50"] == pytest.approx(0.15)
    assert figures["between_tokens_s"]["p99"] == pytest.approx(0.1)
    assert figures["between_messages_s"]["p50"] == pytest.approx(0.2)
    assert figures["end_to_end_s"]["p99"] < 0.7


def test_when_nothing_was_answered_there_are_no_times() -> None:
    assert summary([Answered(error="UnavailableError")], seconds=1.0)["first_token_s"] is None


@pytest.mark.parametrize(("percent", "value"), [("p50", 2.5), ("p90", 3.7)])
def test_a_percentile_lies_in_proportion_between_its_neighbours(percent: str, value: float) -> None:
    found = percentiles([4.0, 1.0, 3.0, 2.0])

    assert found is not None
    assert found[percent] == pytest.approx(value)


def test_one_value_is_every_percentile_and_none_has_none() -> None:
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert percentiles([]) is None


EXTENT = {"seconds": 1.0, "max_tokens": 4, "temperature": 0.0}


def test_each_rate_meets_each_speculation_next_to_one_another() -> None:
    made = windows([1.0, 8.0], ["off", "3"], **EXTENT)

    assert [(one.rate, one.speculation) for one in made] == [(1, "off"), (1, 3), (8, "off"), (8, 3)]
    assert made[0] == Window(rate=1.0, speculation="off", **EXTENT)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name_before_anything_is_asked(
    change: dict[str, float], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        windows([1.0], ["off"], **{**EXTENT, **change})


@pytest.mark.parametrize(("rate", "spoken", "named"), [(0.0, "off", "rate"), (1.0, "17", "speculation")])
def test_so_are_rates_and_speculations(rate: float, spoken: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        windows([rate], [spoken], **EXTENT)
