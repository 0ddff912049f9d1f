"""What following prompts took, booked over all that their sequences say: it is paid before the first draft. Pure."""

from typing import NamedTuple


class _Debt(NamedTuple):
    """Of one sequence."""

    owed_s: float
    rate_s: float  # of each token that it says
    since: float  # tokens that every sequence had said then


class Debts:
    """Of one replica's live sequences."""

    def __init__(self) -> None:
        self._rooms: dict[int, int] = {}  # by sequence: tokens that it says at most
        self._debts: dict[int, _Debt] = {}
        self._rate_s = self._said = 0.0  # all debts' together; tokens that every sequence has said so far

    def meet(self, sequence_id: int, room: int) -> None:
        """A sequence came that says so many tokens at most."""
        self._rooms[sequence_id] = max(room, 1)

    def owe(self, sequence_id: int, took_s: float) -> None:
        """A part of its prompt was followed in that time."""
        if sequence_id in self._rooms:
            took_s += self.settle(sequence_id)
            rate_s = took_s / self._rooms[sequence_id]
            self._debts[sequence_id] = _Debt(took_s, rate_s, self._said)
            self._rate_s += rate_s

    def due(self, tokens: float) -> float:
        """Seconds to book for rounds in which each sequence says so many tokens."""
        self._said += tokens
        return self._rate_s * tokens

    def settle(self, sequence_id: int) -> float:
        """Seconds that are not booked yet, of a sequence that says no more."""
        debt = self._debts.pop(sequence_id, None)
        if debt is None:
            return 0.0
        self._rate_s = self._rate_s - debt.rate_s if self._debts else 0.0
        return max(debt.owed_s - debt.rate_s * (self._said - debt.since), 0.0)

    def forget(self, sequence_id: int) -> float:
        """The same, and nothing is kept of it."""
        rest_s = self.settle(sequence_id)
        self._rooms.pop(sequence_id, None)
        return rest_s
