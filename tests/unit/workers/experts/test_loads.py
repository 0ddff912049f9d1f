import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.experts.loads import ExpertLoads

COUNTS = st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=1, max_size=12)


@given(COUNTS, st.integers(1, 5))
def test_loads_are_those_of_the_last_reports(reports: list[list[int]], window: int) -> None:
    loads = ExpertLoads(layers=2, experts=5, window=window)
    for counts in reports:
        loads.add(np.array([[0] * 5, counts]))

    assert loads.total.tolist() == [[0] * 5, np.sum(reports[-window:], axis=0).tolist()]


def test_a_window_of_no_reports_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        ExpertLoads(layers=1, experts=1, window=0)
