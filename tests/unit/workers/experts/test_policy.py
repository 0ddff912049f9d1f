import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.experts.placement import ExpertPlacement, round_robin_table
from outrider.workers.experts.placing import ExpertLayout, imbalance
from outrider.workers.experts.policy import BalancePolicy, better_table, moves, uneven_layers

LAYOUT = ExpertLayout(experts=8, ranks=2, redundant_experts=2)
TABLE = round_robin_table(8, 10, 2)
POLICY = BalancePolicy(least_rows=1)


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8), st.integers(0, 10))
def test_a_table_is_only_changed_for_a_better_one_within_the_moves_left(loads: list[int], moves_left: int) -> None:
    counts = np.array(loads)

    table = better_table(counts, TABLE, LAYOUT, POLICY, moves_left)

    if table is not None:
        before, after = (
            float(imbalance(counts[None].astype(float), ExpertPlacement(each[None], 8))[0]) for each in (TABLE, table)
        )
        assert after <= before - POLICY.least_gain
        assert 0 < moves(TABLE, table, 8) <= moves_left


def test_layers_are_seen_to_by_how_uneven_they_are() -> None:
    loads = np.array([[100] * 8, [500, 400, *[10] * 6], [200, *[100] * 3, *[60] * 4], [0] * 8])
    placement = ExpertPlacement(np.stack([round_robin_table(8, 8, 2)] * 4), 8)

    assert uneven_layers(loads, placement, POLICY) == [1, 2]


@pytest.mark.parametrize(("window", "reports", "every"), [(1000, 10, 100), (4, 4, 1), (1, 1, 1), (25, 10, 2)])
def test_a_window_is_made_of_at_most_ten_reports(window: int, reports: int, every: int) -> None:
    policy = BalancePolicy.of(enabled=True, window_size=window, step_interval=7)

    assert (policy.window, policy.report_every, policy.step_every) == (reports, every, 7)
