"""The price of a second."""

import pytest

from outrider.workers.speculation.price import Price, size_class


def test_at_first_nothing_is_gained() -> None:
    assert Price().gain(4) == 1.0


def test_it_rises_with_what_speculation_gains() -> None:
    price = Price()
    for _ in range(300):
        price.observe(1, tokens=3, took_s=0.15, undrafted_s=0.1)

    assert price.gain(1) == pytest.approx(2.0, rel=0.02)


def test_it_never_falls_below_that_without_drafts() -> None:
    price = Price()
    for _ in range(300):
        price.observe(1, tokens=1, took_s=0.3, undrafted_s=0.1)

    assert price.gain(1) == 1.0


def test_sizes_of_batch_are_apart_and_an_unknown_one_takes_the_nearest() -> None:
    price = Price()
    for _ in range(300):
        price.observe(1, tokens=3, took_s=0.15, undrafted_s=0.1)
        price.observe(16, tokens=16, took_s=0.1, undrafted_s=0.1)

    assert price.gain(2) == price.gain(1) > price.gain(16) == price.gain(64)
    assert [size_class(batch) for batch in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]
