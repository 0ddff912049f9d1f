"""Decides which requests a gateway takes on, before any work is done for them. No network.

Ids are unique, and what is live and what waits is bounded. fair_queue.py chooses the next request.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from outrider.cluster.api.errors import DuplicateRequestError
from outrider.cluster.api.load_report import Load
from outrider.cluster.gateway.requests.fair_queue import FairQueue, Turn
from outrider.workers.types.closing import ClosedOnExit
from outrider.workers.types.errors import OverloadedError
from outrider.workers.types.settings import Setting, check_settings

RETRY_AFTER_S = 1.0  # where nothing has ended yet to tell by
LEAST_RETRY_S = 0.1
MOST_RETRY_S = 60.0
MOST_OUTPUTS = 128
_REFUSED_JUST_NOW_S = 2.0
_UNSERVED_S = 10.0  # a request that found no replica counts as load for so long: clients try again meanwhile
REFUSALS = ("live_requests", "token_limit", "queued_tokens", "wait", "deadline")  # by cause


@dataclass(frozen=True, kw_only=True)
class AdmissionLimits:
    """A request counts as often as it has outputs."""

    max_live_requests: Annotated[int, Setting("Maximum number of outputs in progress.", least=1)] = 1024
    max_live_requests_per_token: Annotated[
        int | None, Setting("Maximum number of outputs in progress per bearer token. By default no limit.", least=1)
    ] = None
    max_queued_tokens: Annotated[
        int, Setting("Maximum number of prompt tokens that wait for a first output token.", least=1)
    ] = 1_000_000
    max_queue_wait_s: Annotated[
        float, Setting("Maximum wait in seconds. Requests with a longer forecast are refused.", least=0)
    ] = 10.0

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(slots=True)
class _Caller:
    """What one caller has here."""

    live_outputs: int = 0
    queued_tokens: int = 0


class Admission:
    """Counts the outputs of live requests, and the prompt tokens of those that wait for their first token.

    A refusal says when there may be room. Where what is live or waits is at its limit, a caller with less than its
    share of that is accepted all the same: one token's demand never shuts out another.

    A request that is resumed was accepted before, here or at a gateway that is gone: it is let in beyond the limits,
    and takes the place of its old self. Anybody may say that, so twice as many may be live in all and not more.
    """

    def __init__(self, limits: AdmissionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock, self._turns = clock, FairQueue(clock)
        self._refused_at = self._unserved_at = -math.inf
        self._unserved = 0  # requests that wait for a first replica
        self._live: dict[str, Ticket] = {}
        self._callers: dict[str, _Caller] = {}
        self._live_outputs = self._queued_tokens = 0

    @property
    def live_requests(self) -> int:
        return len(self._live)

    @property
    def queued_tokens(self) -> int:
        return self._queued_tokens

    @property
    def queued_requests(self) -> int:
        """Those that wait for their turn, or for a first replica."""
        return self._turns.waiting + self._unserved

    @property
    def waiting(self) -> Load:
        """What waits for its turn, as the autoscaler counts it; one token at least where a request found no replica."""
        unserved = self._unserved or int(self._clock() < self._unserved_at + _UNSERVED_S)
        return Load(tokens=max(unserved, self._turns.waiting_tokens), oldest_wait_s=self._turns.oldest_wait_s)

    @property
    def max_queue_wait_s(self) -> float:
        return self._limits.max_queue_wait_s

    @property
    def wanted(self) -> bool:
        """Whether others wait for what is taken, or were refused for it just now."""
        return self._turns.waiting > 0 or self._clock() < self._refused_at + _REFUSED_JUST_NOW_S

    def note_unserved(self) -> None:
        """A request was refused because no replica is ready."""
        self._unserved_at = self._clock()

    @contextlib.contextmanager
    def unserved(self) -> Iterator[None]:
        """A request waits for a first replica meanwhile. OverloadedError if as many wait as may be live."""
        if self._unserved >= self._limits.max_live_requests:
            raise self._refusal(f"{self._unserved} requests wait for a first replica", "live_requests", None)
        self._unserved += 1
        try:
            yield
        finally:
            self._unserved -= 1

    def set_places(self, places: int) -> None:
        """How many outputs may be on replicas at once."""
        self._turns.set_places(places)

    def enter(
        self,
        request_id: str,
        *,
        caller: str = "",
        resumed: bool = False,
        outputs: int = 1,
        deadline_s: float | None = None,
    ) -> "Ticket":
        """Takes a request on until its ticket is closed. DuplicateRequestError or OverloadedError if it cannot.

        `deadline_s`: how long the client waits, if not for ever.
        """
        earlier = self._live.get(request_id)
        if earlier is not None and not (resumed and earlier.caller == caller):
            raise DuplicateRequestError(f"request_id {request_id!r} belongs to a request that is still live")
        outputs = max(1, min(MOST_OUTPUTS, outputs))
        if earlier is None:
            self._check_room(caller, outputs, resumed=resumed)
        if not resumed:
            self._check_queue(caller)
            self._check_wait(caller, outputs, deadline_s)
        if earlier is not None:
            earlier.close()
            earlier.replace()
        ticket = self._live[request_id] = Ticket(self, request_id, Turn(caller, outputs), resumed=resumed)
        self._callers.setdefault(caller, _Caller()).live_outputs += outputs
        self._live_outputs += outputs
        return ticket

    def _check_room(self, caller: str, outputs: int, *, resumed: bool) -> None:
        """A request with more outputs than there is room for in all is taken when it is alone."""
        most = self._limits.max_live_requests * (2 if resumed else 1)
        own = self._callers.get(caller, _Caller()).live_outputs
        over = self._live_outputs + outputs - most
        if self._live and over > 0 and (resumed or own + outputs > most // self._sharing(caller)):
            live = f"{self._live_outputs} outputs of {len(self._live)} requests are live, of at most {most}"
            raise self._refusal(live, "live_requests", self._turns.room_s(over))
        most_own = self._limits.max_live_requests_per_token
        if caller and most_own is not None and own and own + outputs > most_own:
            live = f"{own} outputs of {caller} are live, of at most {most_own} for one token"
            raise self._refusal(live, "token_limit", self._turns.room_s(own + outputs - most_own))

    def _sharing(self, caller: str) -> int:
        """How many callers have something here, this one included."""
        return len(self._callers) + (caller not in self._callers)

    def _check_queue(self, caller: str, tokens: int = 0) -> None:
        """A prompt too long for the whole queue is taken when it is alone, or it never would be."""
        most, own = self._limits.max_queued_tokens, self._callers.get(caller, _Caller()).queued_tokens
        full = self._queued_tokens + max(1, tokens) > most
        if self._queued_tokens and full and own + max(1, tokens) > most // self._sharing(caller):
            waits = f"{self._queued_tokens} prompt tokens wait for their turn, of at most {most}"
            raise self._refusal(waits, "queued_tokens", self._turns.wait_s(caller) or None)

    def _check_wait(self, caller: str, outputs: int, deadline_s: float | None) -> None:
        wait_s = self._turns.wait_s(caller, outputs)
        if deadline_s is not None and wait_s > max(0.0, deadline_s):
            late = f"its turn is in about {wait_s:.1f} s, and its deadline in {max(0.0, deadline_s):.1f} s"
            raise self._refusal(late, "deadline", wait_s)
        if wait_s > self._limits.max_queue_wait_s and not self._turns.is_due(caller):
            most = self._limits.max_queue_wait_s
            raise self._refusal(f"its turn is in about {wait_s:.1f} s, at most {most:g} s may be", "wait", wait_s)

    def _refusal(self, message: str, cause: str, retry_s: float | None) -> OverloadedError:
        self._refused_at = self._clock()
        retry_s = RETRY_AFTER_S if retry_s is None else min(MOST_RETRY_S, max(LEAST_RETRY_S, retry_s))
        return OverloadedError(message, retry_s, cause)

    def _queue(self, ticket: "Ticket", tokens: int) -> None:
        if not ticket.resumed:
            self._check_queue(ticket.caller, tokens)
        self._count_queued(ticket.caller, tokens)

    def _count_queued(self, caller: str, tokens: int) -> None:
        self._queued_tokens += tokens
        self._callers[caller].queued_tokens += tokens

    def _leave(self, ticket: "Ticket") -> None:
        if self._live.get(ticket.request_id) is not ticket:
            return
        del self._live[ticket.request_id]
        self._live_outputs -= ticket.outputs
        own = self._callers[ticket.caller]
        own.live_outputs -= ticket.outputs
        if not own.live_outputs:
            del self._callers[ticket.caller]


class Ticket(ClosedOnExit):
    """One request's place. A context manager: leaving gives everything back."""

    def __init__(self, admission: Admission, request_id: str, turn: Turn, *, resumed: bool) -> None:
        self._admission, self._turn = admission, turn
        self.request_id, self.caller, self.outputs, self.resumed = request_id, turn.caller, turn.outputs, resumed
        self.replace: Callable[[], None] = lambda: None  # ends the request: it goes on under another ticket
        self._queued = 0
        self._closed = False

    def queue(self, prompt_tokens: int) -> None:
        """The prompt waits for its first token. OverloadedError if too much waits already."""
        self._admission._queue(self, prompt_tokens)
        self._queued += prompt_tokens
        self._turn.prompt_tokens = prompt_tokens

    def ask_for_turn(self, start: Callable[[], None]) -> None:
        """Calls `start` when the request may go to a replica: maybe at once."""
        self._turn.start = start
        turns = self._admission._turns
        (turns.take if self.resumed else turns.ask)(self._turn)

    def started(self) -> None:
        """The first token came; the prompt waits no longer."""
        if self._queued:
            self._admission._count_queued(self.caller, -self._queued)
        self._queued = 0

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.started()
        self.end_turn()
        self._admission._leave(self)

    def end_turn(self) -> None:
        """Replicas are done with it: its places are another's, while the client reads."""
        self._admission._turns.leave(self._turn)
