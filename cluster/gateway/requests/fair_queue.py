"""Which waiting request goes to a replica next, and how long a new one would wait. Pure but for the clock it is given.

A place is room for one output on a replica. The next free place goes to the caller that holds the fewest; of equals, to
the one that got its last place longest ago. A caller's own requests go in their order. So callers that all have enough
to do hold equally many places, however much each of them asks for.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_WEIGHT = 1 / 16  # of the latest in the mean of how long places are held


@dataclass(slots=True, eq=False)
class Turn:
    """One request's wait for its places, and its holding of them."""

    caller: str
    outputs: int
    prompt_tokens: int = 0
    start: Callable[[], None] = lambda: None  # called when it is its turn
    asked: float = 0.0  # when it began to wait
    began: float | None = None  # when it got its places


@dataclass(slots=True)
class _Account:
    """One caller's."""

    holding: int = 0  # places
    waiting: deque[Turn] = field(default_factory=deque)
    last: int = 0  # grows with every turn given

    @property
    def waiting_outputs(self) -> int:
        return sum(turn.outputs for turn in self.waiting)


class FairQueue:
    """`places` is how many the replicas have together; `move` gives out what is free."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places = 0
        self._held = 0
        self._running: dict[Turn, None] = {}  # those with places, the first for longest
        self._accounts: dict[str, _Account] = {}
        self._given = itertools.count(1)
        self._ended = 0
        self._held_s: float | None = None  # how long places are held, of late

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(account.waiting) for account in self._accounts.values())

    @property
    def waiting_tokens(self) -> int:
        """Of the prompts of all outputs that wait."""
        return sum(turn.prompt_tokens * turn.outputs for one in self._accounts.values() for turn in one.waiting)

    @property
    def oldest_wait_s(self) -> float:
        """Of those that wait."""
        asked = [account.waiting[0].asked for account in self._accounts.values() if account.waiting]
        return self._clock() - min(asked) if asked else 0.0

    def set_places(self, places: int) -> None:
        self._places = places
        self._move()

    def ask(self, turn: Turn) -> None:
        """It waits from now on."""
        turn.asked = self._clock()
        self._account(turn.caller).waiting.append(turn)
        self._move()

    def take(self, turn: Turn) -> None:
        """It goes at once, whether there are places or not."""
        self._start(self._account(turn.caller), turn)

    def leave(self, turn: Turn) -> None:
        """It gives its places back, or waits no more."""
        account = self._account(turn.caller)
        if turn.began is None:
            if turn in account.waiting:
                account.waiting.remove(turn)
        else:
            del self._running[turn]
            account.holding -= turn.outputs
            self._held -= turn.outputs
            self._note(self._clock() - turn.began)
            turn.began = None
        if not account.holding and not account.waiting:
            self._accounts.pop(turn.caller, None)
        self._move()

    def wait_s(self, caller: str, outputs: int = 1) -> float:
        """How long a new request of this caller would wait; 0 where there is room.

        While nothing has ended yet, places are taken to be held as long as the first has been.

        It gains what it holds less than its share from all places that come free; for more than its share it waits
        until its own come free.
        """
        if not self._places or self._demanded < self._places:
            return 0.0
        account = self._accounts.get(caller, _Account())
        before = account.waiting_outputs + 1  # of its own outputs, and the first of this request
        share = max(1.0, min(account.holding + account.waiting_outputs + outputs, self._share(caller)))
        gained = min(before, max(0.0, share - account.holding))
        return self._free_in_s(math.ceil(gained + (before - gained) * self._places / share))

    def is_due(self, caller: str) -> bool:
        """Whether the next free places are this caller's own, as it holds and waits for less than its share.

        Where another takes what it leaves, it may have its share waiting besides: its requests come by chance, or
        bunched by its own process, and its share would go to the other in every gap between them.
        """
        account, share = self._accounts.get(caller, _Account()), self._share(caller)
        waiting = account.waiting_outputs
        is_contended = max(self._demands_but(caller), default=0) >= share
        return account.holding + waiting < share or (is_contended and waiting < share)

    @property
    def _demanded(self) -> int:
        return sum(one.holding + one.waiting_outputs for one in self._accounts.values())

    def _share(self, caller: str) -> float:
        """Of the places, if it asked for all."""
        return min(self._places, fair_share(self._places, [*self._demands_but(caller), self._places]))

    def _demands_but(self, caller: str) -> list[int]:
        """What each other caller holds and waits for."""
        return [one.holding + one.waiting_outputs for name, one in self._accounts.items() if name != caller]

    def _free_in_s(self, count: int) -> float:
        """When so many places have come free: as fast as on average, and not before those held longest are due."""
        now = self._clock()
        held_s = self._held_s if self._held_s is not None else self._longest_s(now)
        on_average = held_s * count / self._places
        for turn in self._running:
            count -= turn.outputs
            if count <= 0 and turn.began is not None:
                return max(on_average, turn.began + held_s - now)
        return on_average

    def _longest_s(self, now: float) -> float:
        """How long the first of those with places has had them."""
        return next((now - turn.began for turn in self._running if turn.began is not None), 0.0)

    def room_s(self, outputs: int) -> float | None:
        """How long until so many outputs have ended; None if nothing is known yet."""
        return self._held_s * outputs / self._places if self._held_s is not None and self._places else None

    def _account(self, caller: str) -> _Account:
        return self._accounts.setdefault(caller, _Account())

    def _move(self) -> None:
        """A request with several outputs goes as soon as there is room for one: else it would wait for ever behind
        those with one."""
        while self._held < self._places:
            waiting = [account for account in self._accounts.values() if account.waiting]
            if not waiting:
                return
            account = min(waiting, key=lambda one: (one.holding, one.last))
            self._start(account, account.waiting.popleft())

    def _start(self, account: _Account, turn: Turn) -> None:
        turn.began, account.last = self._clock(), next(self._given)
        account.holding += turn.outputs
        self._held += turn.outputs
        self._running[turn] = None
        turn.start()

    def _note(self, held_s: float) -> None:
        self._ended += 1
        before = self._held_s or 0.0
        self._held_s = before + max(_WEIGHT, 1 / self._ended) * (held_s - before)


def fair_share(places: int, demands: Iterable[int]) -> float:
    """The most that anybody holds where each gets what it demands or this, and nothing is left that is demanded."""
    left, rest = float(places), sorted(demands)
    for number, demand in enumerate(rest):
        share = left / (len(rest) - number)
        if demand > share:
            return share
        left -= demand
    return float(max(rest, default=0))
