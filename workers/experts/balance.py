"""The leader's part in keeping ranks' experts even: which order goes with the next round, by what was answered so far.

A state machine without clocks, tensors or threads. One layer moves at a time: ranks read what they will lack beside
the rounds, are asked now and then whether they have it, and go over to it all in the same round.
"""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from outrider.workers.config import EngineConfig
from outrider.workers.experts.loads import ExpertLoads
from outrider.workers.experts.orders import NOTHING, Order, State, order, prepare
from outrider.workers.experts.placement import IntArray
from outrider.workers.experts.placing import ExpertLayout, imbalance
from outrider.workers.experts.policy import BalancePolicy, as_placement, better_table, moves, uneven_layers
from outrider.workers.types.counters import ExpertFigures

_ASK_EVERY = 4  # rounds


@dataclass(slots=True)
class _Move:
    """A layer under way."""

    row: int
    table: IntArray
    ready: bool = False
    since_asked: int = 0


class ExpertBalance:
    """`order` for every round in turn, `hear` for its answer, which may come a few rounds later."""

    def __init__(self, layout: ExpertLayout, policy: BalancePolicy) -> None:
        self.figures = ExpertFigures()
        self._layout, self._policy = layout, policy
        self._layers: list[int] = []  # their numbers, by row; known from the first report on
        self._tables: list[IntArray] = []  # by row
        self._loads: ExpertLoads | None = None
        self._since_report = self._since_step = 0  # rounds
        self._news = False  # a report since the last look at all layers
        self._unanswered = False
        self._to_see: deque[int] = deque()  # rows of this step
        self._moves_left = 0
        self._move: _Move | None = None

    @classmethod
    def of(cls, config: EngineConfig, layout: ExpertLayout) -> "ExpertBalance":
        policy = BalancePolicy.of(
            enabled=config.enable_eplb,
            window_size=config.eplb_window_size,
            step_interval=config.eplb_step_interval,
        )
        return cls(layout, policy)

    def order(self) -> IntArray:
        """What the next round carries; a look at one layer at most, so that no round waits for it."""
        self._since_report += 1
        self._since_step += 1
        if self._unanswered:
            return NOTHING
        if self._move is not None:
            return self._go_on(self._move)
        move = self._next_move()
        if not len(move) and self._since_report >= self._policy.report_every:
            self._since_report, self._unanswered = 0, True
            return order(Order.REPORT)
        return move

    def hear(self, answer: IntArray) -> None:
        """What came back with a round; empty if nothing was asked."""
        if not len(answer):
            return
        self._unanswered = False
        if self._move is None:
            self._take_in(answer.reshape(-1, 1 + self._layout.experts))
        elif answer[0] == State.READY:
            self._move.ready = True
        elif answer[0] == State.FAILED:
            self._move = None
            self.figures = replace(self.figures, stopped=True)

    def _take_in(self, report: IntArray) -> None:
        """`report` [layers, number and counts]."""
        if self._loads is None:
            layout = self._layout
            self._layers = report[:, 0].tolist()
            self._loads = ExpertLoads(len(self._layers), layout.experts, self._policy.window)
            self._tables = [layout.first_table() for _ in self._layers]
        self._loads.add(report[:, 1:])
        self._news = True
        self._measure(self._loads)

    def _measure(self, loads: ExpertLoads) -> None:
        found = imbalance(loads.total.astype(np.float64), as_placement(self._tables, self._layout.experts))
        self.figures = replace(self.figures, imbalance=dict(zip(self._layers, found.tolist(), strict=True)))

    def _next_move(self) -> IntArray:
        if self._loads is None or not self._policy.enabled or self.figures.stopped:
            return NOTHING
        if not self._to_see and self._news and self._since_step >= self._policy.step_every:
            placement = as_placement(self._tables, self._layout.experts)
            self._to_see.extend(uneven_layers(self._loads.total, placement, self._policy))
            self._since_step, self._news = 0, False
            self._moves_left = self._policy.most_moves * self._layout.ranks
        if not self._to_see:
            return NOTHING
        row = self._to_see.popleft()
        table = better_table(self._loads.total[row], self._tables[row], self._layout, self._policy, self._moves_left)
        if table is None:
            return NOTHING
        self._move = _Move(row, table)
        return prepare(self._layers[row], table)

    def _go_on(self, move: _Move) -> IntArray:
        if move.ready:
            return self._switch(move)
        move.since_asked += 1
        if move.since_asked < _ASK_EVERY:
            return NOTHING
        move.since_asked, self._unanswered = 0, True
        return order(Order.ASK)

    def _switch(self, move: _Move) -> IntArray:
        count = moves(self._tables[move.row], move.table, self._layout.experts)
        self._moves_left -= count
        self._tables[move.row], self._move = move.table, None
        figures = self.figures
        self.figures = replace(figures, replacements=figures.replacements + 1, moves=figures.moves + count)
        return order(Order.SWITCH)
