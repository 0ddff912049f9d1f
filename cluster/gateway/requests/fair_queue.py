"""A fair queue of requests, by caller, and the forecast of a new request's wait. Pure except for the clock.

A place is capacity for one output on a replica. The next free place goes to the caller that holds the fewest places;
among equals, to the one served least recently. Each caller's own requests are first in, first out. Callers that always
have waiting requests therefore hold equally many places, however many requests each sends.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_WEIGHT = 1 / 16  # weight of a new value in the moving mean of how long places are held


@dataclass(slots=True, eq=False)
class Turn:
    """One request that waits for places or holds them."""

    caller: str
    outputs: int
    prompt_tokens: int = 0
    start: Callable[[], None] = lambda: None  # called when it gets its places
    queued_at: float = 0.0
    started_at: float | None = None  # when it got its places


@dataclass(slots=True)
class _Account:
    """The places and waiting requests of one caller."""

    held: int = 0  # places
    waiting: deque[Turn] = field(default_factory=deque)
    last: int = 0  # sequence number of the last start

    @property
    def waiting_outputs(self) -> int:
        return sum(turn.outputs for turn in self.waiting)


class FairQueue:
    """Starts waiting requests when places become free. `places`: the total of all replicas."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places = 0
        self._held = 0
        self._running: dict[Turn, None] = {}  # requests that hold places, the oldest first
        self._accounts: dict[str, _Account] = {}
        self._starts = itertools.count(1)
        self._ended = 0
        self._held_s: float | None = None  # moving mean of how long places are held

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return sum(len(account.waiting) for account in self._accounts.values())

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of waiting requests, counted once per output."""
        return sum(turn.prompt_tokens * turn.outputs for one in self._accounts.values() for turn in one.waiting)

    @property
    def oldest_wait_s(self) -> float:
        """The longest wait of the waiting requests."""
        queued = [account.waiting[0].queued_at for account in self._accounts.values() if account.waiting]
        return self._clock() - min(queued) if queued else 0.0

    def set_places(self, places: int) -> None:
        self._places = places
        self._start_waiting()

    def enqueue(self, turn: Turn) -> None:
        """Adds a request to its caller's queue. It may start immediately."""
        turn.queued_at = self._clock()
        self._account(turn.caller).waiting.append(turn)
        self._start_waiting()

    def resume(self, turn: Turn) -> None:
        """Starts a request immediately, even if no place is free.

        While other callers wait, it starts only within its caller's fair share. Beyond that it goes to the front of its
        caller's queue: any client can send a request as resumed, and would otherwise starve the others.
        """
        account = self._account(turn.caller)
        others_wait = any(one.waiting for one in self._accounts.values() if one is not account)
        if not others_wait or account.held + turn.outputs <= self._share(turn.caller):
            self._start(account, turn)
            return
        turn.queued_at = self._clock()
        account.waiting.appendleft(turn)
        self._start_waiting()

    def release(self, turn: Turn) -> None:
        """Releases the request's places, or removes it from the queue."""
        account = self._account(turn.caller)
        if turn.started_at is None:
            if turn in account.waiting:
                account.waiting.remove(turn)
        else:
            del self._running[turn]
            account.held -= turn.outputs
            self._held -= turn.outputs
            self._record_held(self._clock() - turn.started_at)
            turn.started_at = None
        if not account.held and not account.waiting:
            self._accounts.pop(turn.caller, None)
        self._start_waiting()

    def wait_s(self, caller: str, outputs: int = 1) -> float:
        """Forecast of a new request's wait; 0 if places are free.

        Up to its fair share, the caller gets places as any caller releases them. Beyond it, the caller waits until its
        own requests release places. Before any request has ended, the oldest running one is the estimate of how long
        places are held.
        """
        if not self._places or self._demanded < self._places:
            return 0.0
        account = self._accounts.get(caller, _Account())
        before = account.waiting_outputs + 1  # its waiting outputs, and the first output of this request
        share = max(1.0, min(account.held + account.waiting_outputs + outputs, self._share(caller)))
        gained = min(before, max(0.0, share - account.held))
        return self._free_in_s(math.ceil(gained + (before - gained) * self._places / share))

    def is_due(self, caller: str) -> bool:
        """Whether this caller holds and waits for fewer outputs than its fair share.

        If another caller would use the remaining places, this one may also have its share waiting. Otherwise it would
        lose places in every gap between its requests.
        """
        account, share = self._accounts.get(caller, _Account()), self._share(caller)
        waiting = account.waiting_outputs
        is_contended = max(self._demands_of_others(caller), default=0) >= share
        return account.held + waiting < share or (is_contended and waiting < share)

    @property
    def _demanded(self) -> int:
        return sum(one.held + one.waiting_outputs for one in self._accounts.values())

    def _share(self, caller: str) -> float:
        """The caller's fair share of the places if its demand were unlimited."""
        return min(self._places, fair_share(self._places, [*self._demands_of_others(caller), self._places]))

    def _demands_of_others(self, caller: str) -> list[int]:
        """The running and waiting outputs of each other caller."""
        return [one.held + one.waiting_outputs for name, one in self._accounts.items() if name != caller]

    def _free_in_s(self, count: int) -> float:
        """Time until `count` places are released, at the average rate, but not before the oldest ones are due."""
        now = self._clock()
        held_s = self._held_s if self._held_s is not None else self._longest_s(now)
        on_average = held_s * count / self._places
        for turn in self._running:
            count -= turn.outputs
            if count <= 0 and turn.started_at is not None:
                return max(on_average, turn.started_at + held_s - now)
        return on_average

    def _longest_s(self, now: float) -> float:
        """How long the oldest running request has held its places."""
        return next((now - turn.started_at for turn in self._running if turn.started_at is not None), 0.0)

    def ended_in_s(self, outputs: int) -> float | None:
        """Estimated time until this many outputs have ended; None if no request has ended yet."""
        return self._held_s * outputs / self._places if self._held_s is not None and self._places else None

    def _account(self, caller: str) -> _Account:
        return self._accounts.setdefault(caller, _Account())

    def _start_waiting(self) -> None:
        """Starts requests while a place is free. One free place is enough for a request with several outputs.

        Otherwise it could wait forever while requests with one output take every place.
        """
        while self._held < self._places:
            waiting = [account for account in self._accounts.values() if account.waiting]
            if not waiting:
                return
            account = min(waiting, key=lambda one: (one.held, one.last))
            self._start(account, account.waiting.popleft())

    def _start(self, account: _Account, turn: Turn) -> None:
        turn.started_at, account.last = self._clock(), next(self._starts)
        account.held += turn.outputs
        self._held += turn.outputs
        self._running[turn] = None
        turn.start()

    def _record_held(self, held_s: float) -> None:
        self._ended += 1
        before = self._held_s or 0.0
        self._held_s = before + max(_WEIGHT, 1 / self._ended) * (held_s - before)


def fair_share(places: int, demands: Iterable[int]) -> float:
    """Max-min fairness: the largest number of places that any demand gets when places are divided equally."""
    left, rest = float(places), sorted(demands)
    for number, demand in enumerate(rest):
        share = left / (len(rest) - number)
        if demand > share:
            return share
        left -= demand
    return float(max(rest, default=0))
