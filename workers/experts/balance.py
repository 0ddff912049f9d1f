"""Runs on the leader: decides when experts move between ranks, and which order the next round carries.

A state machine without clocks, tensors or threads. One layer moves at a time. Ranks read missing experts beside the
rounds. The leader asks every few rounds whether they are ready; then all ranks switch in the same round.
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
    """A layer whose experts are being moved."""

    row: int
    table: IntArray
    ready: bool = False
    since_asked: int = 0


class ExpertBalance:
    """Call `order` for every round and `observe` for its answer, which may come a few rounds later."""

    def __init__(self, layout: ExpertLayout, policy: BalancePolicy) -> None:
        self.figures = ExpertFigures()
        self._layout, self._policy = layout, policy
        self._layers: list[int] = []  # layer numbers, by row; known after the first report
        self._tables: list[IntArray] = []  # by row
        self._loads: ExpertLoads | None = None
        self._since_report = self._since_step = 0  # rounds
        self._has_new_report = False  # a report came since the last check of all layers
        self._unanswered = False
        self._rows_to_check: deque[int] = deque()  # layers still to check in this step
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
        """The next round's order. It checks at most one layer, so that no round is delayed."""
        self._since_report += 1
        self._since_step += 1
        if self._unanswered:
            return NOTHING
        if self._move is not None:
            return self._continue_move(self._move)
        move = self._next_move()
        if not len(move) and self._since_report >= self._policy.report_every:
            self._since_report, self._unanswered = 0, True
            return order(Order.REPORT)
        return move

    def observe(self, answer: IntArray) -> None:
        """Processes a round's answer; empty if the round had no question."""
        if not len(answer):
            return
        self._unanswered = False
        if self._move is None:
            self._add_report(answer.reshape(-1, 1 + self._layout.experts))
        elif answer[0] == State.READY:
            self._move.ready = True
        elif answer[0] == State.FAILED:
            self._move = None
            self.figures = replace(self.figures, stopped=True)

    def _add_report(self, report: IntArray) -> None:
        """`report` [layers, number and counts]."""
        if self._loads is None:
            layout = self._layout
            self._layers = report[:, 0].tolist()
            self._loads = ExpertLoads(len(self._layers), layout.experts, self._policy.window)
            self._tables = [layout.first_table() for _ in self._layers]
        self._loads.add(report[:, 1:])
        self._has_new_report = True
        self._measure(self._loads)

    def _measure(self, loads: ExpertLoads) -> None:
        found = imbalance(loads.total.astype(np.float64), as_placement(self._tables, self._layout.experts))
        self.figures = replace(self.figures, imbalance=dict(zip(self._layers, found.tolist(), strict=True)))

    def _next_move(self) -> IntArray:
        if self._loads is None or not self._policy.enabled or self.figures.stopped:
            return NOTHING
        if not self._rows_to_check and self._has_new_report and self._since_step >= self._policy.step_every:
            placement = as_placement(self._tables, self._layout.experts)
            self._rows_to_check.extend(uneven_layers(self._loads.total, placement, self._policy))
            self._since_step, self._has_new_report = 0, False
            self._moves_left = self._policy.most_moves * self._layout.ranks
        if not self._rows_to_check:
            return NOTHING
        row = self._rows_to_check.popleft()
        table = better_table(self._loads.total[row], self._tables[row], self._layout, self._policy, self._moves_left)
        if table is None:
            return NOTHING
        self._move = _Move(row, table)
        return prepare(self._layers[row], table)

    def _continue_move(self, move: _Move) -> IntArray:
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
