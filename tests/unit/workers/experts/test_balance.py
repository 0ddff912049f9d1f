"""The leader's orders about experts, with ranks that apply them as real ones do, but for weights."""

from dataclasses import replace

import numpy as np
import pytest

from outrider.workers.experts.balance import ExpertBalance
from outrider.workers.experts.orders import NOTHING, Order, State
from outrider.workers.experts.placement import ExpertPlacement, IntArray
from outrider.workers.experts.placing import ExpertLayout, imbalance
from outrider.workers.experts.policy import BalancePolicy

LAYOUT = ExpertLayout(experts=16, ranks=4, redundant_experts=4)
POLICY = BalancePolicy(report_every=3, window=2, step_every=10, least_rows=1)
LAYERS = (3, 4, 9)
EVEN = np.full(16, 100)
SKEWED = np.array([900, 800, 700, 600, *[50] * 12])  # all on the first rank at first


class Ranks:
    """A stage that counts `loads` [layers, experts] every round, and takes `reading` questions to read an expert."""

    def __init__(
        self, loads: IntArray, reading: int = 0, state: State = State.READY, layout: ExpertLayout = LAYOUT
    ) -> None:
        self.loads, self.reading, self.state = loads, reading, state
        self.tables = {layer: layout.first_table() for layer in LAYERS}
        self.orders: list[Order] = []
        self._rounds = 0
        self._coming: tuple[int, IntArray] | None = None
        self._asked = 0

    def apply(self, order: IntArray) -> IntArray:
        self._rounds += 1
        if not len(order):
            return NOTHING
        self.orders.append(Order(int(order[0])))
        match self.orders[-1]:
            case Order.REPORT:
                counted = self.loads * self._rounds
                self._rounds = 0
                return np.column_stack([LAYERS, counted]).ravel()
            case Order.PREPARE:
                assert self._coming is None, "one layer at a time"
                self._coming, self._asked = (int(order[1]), order[2:].reshape(LAYOUT.ranks, -1)), 0
            case Order.ASK:
                self._asked += 1
                return np.array([State.READING if self._asked <= self.reading else self.state])
            case Order.SWITCH:
                assert self._coming is not None
                assert self._asked > self.reading, "not everybody has what it needs"
                self.tables[self._coming[0]], self._coming = self._coming[1], None
        return NOTHING

    def imbalance(self) -> list[float]:
        placement = ExpertPlacement(np.stack(list(self.tables.values())), LAYOUT.experts)
        return imbalance(self.loads.astype(np.float64), placement).tolist()


def _serve(balance: ExpertBalance, ranks: Ranks, rounds: int, lanes: int = 1) -> None:
    """Answers come `lanes` - 1 rounds later."""
    under_way: list[IntArray] = []
    for _ in range(rounds):
        under_way.append(ranks.apply(balance.order()))
        if len(under_way) == lanes:
            balance.observe(under_way.pop(0))


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("reading", [0, 5])
def test_uneven_layers_become_even_one_at_a_time_and_even_ones_stay(reading: int, lanes: int) -> None:
    ranks = Ranks(np.stack([SKEWED, EVEN, SKEWED[::-1]]), reading=reading)
    before = ranks.imbalance()
    balance = ExpertBalance(LAYOUT, replace(POLICY, most_moves=100))

    _serve(balance, ranks, 200, lanes)

    after = ranks.imbalance()
    assert min(before[0], before[2]) > 1.5
    assert max(after) < 1.15
    assert balance.figures.imbalance == pytest.approx(dict(zip(LAYERS, after, strict=True)))
    first = ExpertPlacement(np.stack([LAYOUT.first_table()] * 3), 16)
    moved = ExpertPlacement(np.stack(list(ranks.tables.values())), 16).moves_from(first)
    assert balance.figures.moves >= moved > 0
    assert balance.figures.replacements == ranks.orders.count(Order.SWITCH) >= 2


def test_what_has_become_even_is_left_alone() -> None:
    ranks = Ranks(np.stack([SKEWED] * 3))
    balance = ExpertBalance(LAYOUT, replace(POLICY, most_moves=100))
    _serve(balance, ranks, 200)
    settled = balance.figures.replacements

    _serve(balance, ranks, 200)

    assert balance.figures.replacements == settled


def test_loads_are_counted_and_nothing_moves_where_that_is_not_wanted() -> None:
    ranks = Ranks(np.stack([SKEWED] * 3))
    balance = ExpertBalance(LAYOUT, replace(POLICY, enabled=False))

    _serve(balance, ranks, 100)

    assert set(ranks.orders) == {Order.REPORT}
    assert list(balance.figures.imbalance.values()) == pytest.approx(ranks.imbalance())


def test_few_rows_say_too_little() -> None:
    ranks = Ranks(np.stack([SKEWED] * 3))
    balance = ExpertBalance(LAYOUT, replace(POLICY, least_rows=10**6))

    _serve(balance, ranks, 100)

    assert set(ranks.orders) == {Order.REPORT}


def test_one_look_moves_no_more_than_it_may() -> None:
    ranks = Ranks(np.stack([SKEWED] * 3))
    balance = ExpertBalance(LAYOUT, replace(POLICY, step_every=100, most_moves=2))

    _serve(balance, ranks, 199)

    assert 0 < balance.figures.moves <= 2 * LAYOUT.ranks


def test_after_a_rank_failed_to_read_experts_stay_where_they_are() -> None:
    ranks = Ranks(np.stack([SKEWED] * 3), state=State.FAILED)
    balance = ExpertBalance(LAYOUT, POLICY)

    _serve(balance, ranks, 200)

    assert balance.figures.stopped
    assert ranks.orders.count(Order.PREPARE) == 1
    assert Order.SWITCH not in ranks.orders
    assert ranks.orders[-1] is Order.REPORT


def test_groups_stay_whole_on_their_nodes_while_experts_move() -> None:
    layout = ExpertLayout(experts=16, ranks=4, redundant_experts=4, nodes=2, groups=4)
    skewed = np.array([900, 50, 800, 50, 700, 50, 50, 600, *[50] * 8])
    balance, ranks = ExpertBalance(layout, POLICY), Ranks(np.stack([skewed] * 3), layout=layout)
    before = ranks.imbalance()

    _serve(balance, ranks, 200)

    assert balance.figures.replacements == len(LAYERS)
    assert max(ranks.imbalance()) < min(before)
    for table in ranks.tables.values():
        on_nodes = [set((node // 4).ravel().tolist()) for node in table.reshape(2, -1)]
        assert not on_nodes[0] & on_nodes[1], "a group has experts on both nodes"
