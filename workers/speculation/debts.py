"""What following prompts takes: foreseen before it is done, and booked over all that their sequences say. Pure.

It is paid before the first draft, so whether it pays only what follows can tell.
"""

from typing import NamedTuple

_LEARNED = 0.2  # a chunk's weight in what a token of a prompt takes


class _Debt(NamedTuple):
    """Of one sequence."""

    owed_s: float
    rate_s: float  # of each token that it says
    since: float  # tokens that every sequence had said then

    def rest_s(self, said: float) -> float:
        """What is not booked yet."""
        return max(self.owed_s - self.rate_s * (said - self.since), 0.0)


class Debts:
    """Of one replica's live sequences."""

    def __init__(self) -> None:
        self._rooms: dict[int, int] = {}  # by sequence: tokens that it says at most
        self._debts: dict[int, _Debt] = {}
        self._pledges_s: dict[int, float] = {}  # of prompts that are followed and not read yet
        self._said = 0.0  # tokens that every sequence has said so far
        self._token_s = 0.0  # of a prompt; 0: none was followed yet

    def meet(self, sequence_id: int, room: int) -> None:
        """A sequence came that says so many tokens at most."""
        self._rooms[sequence_id] = max(room, 1)

    def with_prompt(self, tokens: int) -> float:
        """Seconds that all followed prompts take which are not booked yet, and one more of so many tokens."""
        owed_s = sum([debt.rest_s(self._said) for debt in self._debts.values()])
        return owed_s + sum(self._pledges_s.values()) + tokens * self._token_s

    def pledge(self, sequence_id: int, tokens: int) -> None:
        """Its prompt of so many tokens will be followed."""
        self._pledges_s[sequence_id] = tokens * self._token_s

    def owe(self, sequence_id: int, tokens: int, took_s: float, *, ends: bool = False) -> None:
        """So many tokens of its prompt were followed in that time; it `ends` with them."""
        each_s = took_s / tokens
        self._token_s += (_LEARNED if self._token_s else 1.0) * (each_s - self._token_s)
        pledged_s = self._pledges_s.pop(sequence_id, 0.0) - took_s
        if pledged_s > 0.0 and not ends:
            self._pledges_s[sequence_id] = pledged_s
        if sequence_id in self._rooms:
            took_s += self.settle(sequence_id)
            self._debts[sequence_id] = _Debt(took_s, took_s / self._rooms[sequence_id], self._said)

    def due(self, tokens: float) -> float:
        """Seconds to book for rounds in which each sequence says so many tokens; of none more than it owes."""
        booked_s = sum([min(debt.rate_s * tokens, debt.rest_s(self._said)) for debt in self._debts.values()])
        self._said += tokens
        return booked_s

    def settle(self, sequence_id: int) -> float:
        """Seconds that are not booked yet, of a sequence that says no more."""
        debt = self._debts.pop(sequence_id, None)
        return 0.0 if debt is None else debt.rest_s(self._said)

    def forget(self, sequence_id: int) -> float:
        """The same, and nothing is kept of it."""
        rest_s = self.settle(sequence_id)
        self._rooms.pop(sequence_id, None)
        self._pledges_s.pop(sequence_id, None)
        return rest_s
