"""Drafts that are not known to pay: whom to try and when, and what may be lost to learn of it. Pure.

Whether a text has become easy only drafts can tell. Owns the hope of every sequence, and spends what the ledger at hand
holds for measuring; knows nothing of what any draft is worth.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from outrider.workers.speculation.acceptance import Made
from outrider.workers.speculation.account import Account
from outrider.workers.speculation.hope import Hope
from outrider.workers.speculation.ledger import Ledger

_MOST_IN_VAIN = 8  # rounds in a row for which drafts are made and none is verified
_TRY_RISK = 0.5  # undrafted rounds that must be left to try a sequence that promises nothing
_PAID_AHEAD = 0.4  # undrafted rounds that are paid at once where drafts do not pay, for as many rounds as that lasts
_LEAST_AT_A_LOSS, _MOST_AT_A_LOSS = 4, 16  # of these
_MOST_ASLEEP = 16  # rounds that speculation has no part in, and that are not looked at


class _Ahead(NamedTuple):
    """Rounds of a lane that were paid for at once."""

    rounds: int
    loss: float  # of each
    ledger: Ledger  # that paid


class Trials:
    """Of the sequences of one replica."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._hopes: dict[int, Hope] = {}
        self._trying: set[int] = set()  # sequences whose next draft is to be verified whatever it is worth
        self._ahead: dict[int, _Ahead] = {}  # by lane
        self._asleep = 0  # rounds until anybody is followed again
        self._slept = 0  # that went by so, and are not counted yet
        self._in_vain = 0  # rounds in a row of whose drafts none was verified

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return len(self._hopes)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._hopes

    @property
    def under_way(self) -> bool:
        """Whether somebody's next draft is to be verified whatever it is worth."""
        return len(self._trying) > 0

    def hope(self, sequence_id: int) -> Hope:
        """What is hoped of the sequence, which may be new."""
        return self._hopes.get(sequence_id) or self._hopes.setdefault(sequence_id, Hope())

    def follows(self, sequence_id: int) -> bool:
        """Whether the drafter should take in the sequence's tokens, for all that is hoped of it."""
        hope = self._hopes.get(sequence_id)
        return hope is None or hope.followed

    def pick(
        self, without: Mapping[int, Hope], spared: Callable[[int], bool], takes: Callable[[int], float], rounds: int
    ) -> set[int]:
        """Whom of those `without` drafts it is time to try, if that can be afforded for all who are due at once.

        `spared` are those who need no model. `takes`: undrafted rounds, to try so many; what starts drafting is the
        same for one as for many. `rounds`: that went by since the last time.
        """
        due = [each for each, hope in without.items() if hope.due and not spared(each)]
        cost, ledger = takes(max(len(due), 1)), self._account.ledger
        affords = ledger.affords(_TRY_RISK) and ledger.affords_to_measure(cost)
        tried = set(due) if affords else set[int]()
        if tried:
            ledger.spend(cost)
            self._trying |= tried
        for each, hope in without.items():
            if each in tried:
                hope.tried()
            elif not spared(each):
                hope.passed(rounds, trial=affords)
        return tried

    def also(self, sequence_id: int) -> None:
        """It drafts at a loss: then it is to be seen at least whether the first stands."""
        self._trying.add(sequence_id)

    def pay_ahead(self, lane: int, loss: float) -> int:
        """Pays for some rounds that each should lose so much: how many, or 0 if that cannot be afforded."""
        rounds = min(max(int(_PAID_AHEAD / max(loss, 1e-9)), _LEAST_AT_A_LOSS), _MOST_AT_A_LOSS)
        if not self._account.ledger.spend(rounds * loss):
            return 0
        self._ahead[lane] = _Ahead(rounds, loss, self._account.ledger)
        return rounds

    def settle_ahead(self, lane: int, rounds: int) -> None:
        """Gives back what was paid for more rounds at a loss than went by."""
        ahead = self._ahead.pop(lane, None)
        if ahead is not None and ahead.rounds > rounds:
            ahead.ledger.refund((ahead.rounds - rounds) * ahead.loss)

    @property
    def asleep(self) -> int:
        """Rounds from now on that need not be looked at, since nobody is followed in them."""
        return self._asleep

    def sleep(self, takes: float) -> None:
        """Nobody in a lane is followed: where that goes for all, few rounds are looked at until it ends.

        `takes`: undrafted rounds, to try one sequence.
        """
        until_due = min([hope.waits for hope in self._hopes.values()])
        if until_due:
            until_due = max(until_due, self._account.ledger.until_affords_to_measure(takes))
        self._asleep = min(until_due, _MOST_ASLEEP)

    def slept(self, rounds: int) -> None:
        """So many went by that were not looked at."""
        through = min(self._asleep, rounds)
        self._asleep -= through
        self._slept += through

    def awake(self) -> None:
        """Somebody came: the next rounds are looked at."""
        self._asleep = 0

    def wake_up(self) -> None:
        """Counts the rounds that were slept through."""
        if self._slept:
            for hope in self._hopes.values():
                hope.passed(self._slept)
        self._asleep = self._slept = 0

    def to_verify(self, counts: list[int], made: Sequence[Made]) -> list[int]:
        """How many drafts of each to verify, where so many are worth it: more of those that are tried.

        And one of each where none was worth it for long: else nothing would be learned.
        """
        if self._trying:
            counts = [
                max(count, 1) if each.sequence_id in self._trying else count
                for count, each in zip(counts, made, strict=True)
            ]
            self._trying.difference_update([each.sequence_id for each in made])
        self._in_vain = 0 if any(counts) else self._in_vain + 1
        if self._in_vain < _MOST_IN_VAIN or not self._account.ledger.affords(_TRY_RISK):
            return counts
        self._in_vain = 0
        return [1] * len(counts)

    def stood(self, sequence_id: int, accepted: int, sequences: int) -> None:
        """So many drafts of the sequence were accepted, in a round of so many: what they took is given back."""
        hope = self._hopes.get(sequence_id)
        if accepted and hope is not None and hope.idle:
            hope.stood()
            self._account.ledger.refund(accepted / sequences)

    def forget(self, sequence_id: int) -> None:
        """It ended."""
        self._hopes.pop(sequence_id, None)
        self._trying.discard(sequence_id)
