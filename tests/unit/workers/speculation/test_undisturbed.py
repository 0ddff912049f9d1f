"""Bursts of rounds without drafts: one that cannot come together must not keep drafts away."""

from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.undisturbed import Undisturbed


def test_a_burst_of_a_size_that_no_longer_occurs_is_given_up() -> None:
    undisturbed = Undisturbed()
    undisturbed.want(0, True, sequences=8)

    for _ in range(64):
        assert undisturbed.wanted
        undisturbed.add([(Shape(1, 1, 100.0, 100.0), 0.001)])

    assert not undisturbed.wanted
    assert undisturbed.missing == 0
    assert undisturbed.take() == []
