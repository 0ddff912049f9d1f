import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.experts.loads import ExpertLoads

CHOICES = st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=6), min_size=1, max_size=12)


@given(CHOICES, st.integers(1, 5))
def test_loads_are_those_of_the_last_rounds(rounds: list[list[int]], window: int) -> None:
    loads = ExpertLoads(layers=2, experts=5, window=window)
    for chosen in rounds:
        loads.begin_round()
        loads.count(1, np.array(chosen, dtype=np.int64).reshape(-1, 1))

    recent = [expert for chosen in rounds[-window:] for expert in chosen]
    assert loads.total[1].tolist() == [recent.count(expert) for expert in range(5)]
    assert not loads.total[0].any()


def test_a_layer_may_be_counted_in_pieces() -> None:
    loads = ExpertLoads(layers=1, experts=3, window=2)
    loads.begin_round()
    loads.count(0, np.array([[0, 1]]))
    loads.count(0, np.array([[1, 2]]))

    assert loads.total.tolist() == [[1, 2, 1]]


def test_a_window_of_no_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        ExpertLoads(layers=1, experts=1, window=0)
