"""Decides whether a gateway accepts a request, before it does any work for it. No network.

Request ids are unique, and live and waiting requests are limited. fair_queue.py chooses the next request to start.
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

RETRY_AFTER_S = 1.0  # if no request has ended yet, so that there is no estimate
LEAST_RETRY_S = 0.1
MOST_RETRY_S = 60.0
MOST_OUTPUTS = 128
_REFUSED_JUST_NOW_S = 2.0
_UNSERVED_S = 10.0  # how long a request refused for lack of a replica counts as load: clients retry in the meantime
REFUSALS = ("live_requests", "token_limit", "queued_tokens", "wait", "deadline")  # by cause


@dataclass(frozen=True, kw_only=True)
class AdmissionLimits:
    """Limits. A request counts once per output."""

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
    """The counts of one caller."""

    live_outputs: int = 0
    queued_tokens: int = 0


class Admission:
    """Counts the outputs of live requests, and the prompt tokens of requests that wait for their first token.

    A refusal contains a retry delay. At a limit, a caller with less than its fair share is still accepted, so that one
    bearer token cannot starve others.

    A resumed request was accepted before, here or at another gateway. It is accepted beyond the limits, and replaces
    its earlier call. Since clients could misuse this, at most twice the limit may be live, and a caller that holds its
    fair share of the places waits for others.
    """

    def __init__(self, limits: AdmissionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock, self._turns = clock, FairQueue(clock)
        self._refused_at = self._unserved_at = -math.inf
        self._unserved = 0  # requests that wait while no replica is ready
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
        """Requests that wait in the fair queue, or for a first replica to be ready."""
        return self._turns.waiting + self._unserved

    @property
    def waiting(self) -> Load:
        """The waiting load for the autoscaler. At least one token if a request waits for a first replica."""
        unserved = self._unserved or int(self._clock() < self._unserved_at + _UNSERVED_S)
        return Load(tokens=max(unserved, self._turns.waiting_tokens), oldest_wait_s=self._turns.oldest_wait_s)

    @property
    def max_queue_wait_s(self) -> float:
        return self._limits.max_queue_wait_s

    @property
    def contended(self) -> bool:
        """Whether requests wait for places, or were refused a moment ago."""
        return self._turns.waiting > 0 or self._clock() < self._refused_at + _REFUSED_JUST_NOW_S

    def note_unserved(self) -> None:
        """Notes that a request was refused because no replica is ready."""
        self._unserved_at = self._clock()

    @contextlib.contextmanager
    def unserved(self) -> Iterator[None]:
        """A context in which a request waits for a first replica. Raises OverloadedError if too many wait."""
        if self._unserved >= self._limits.max_live_requests:
            raise self._refusal(f"{self._unserved} requests wait for a first replica", "live_requests", None)
        self._unserved += 1
        try:
            yield
        finally:
            self._unserved -= 1

    def set_places(self, places: int) -> None:
        """Sets how many outputs may run on replicas at the same time."""
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
        """Accepts a request until its ticket is closed. Raises DuplicateRequestError or OverloadedError.

        `deadline_s`: how long the client waits; None: without limit.
        """
        earlier = self._live.get(request_id)
        if earlier is not None and not (resumed and earlier.caller == caller):
            raise DuplicateRequestError(f"request_id {request_id!r} belongs to a request that is still live")
        outputs = max(1, min(MOST_OUTPUTS, outputs))
        more = outputs - (earlier.outputs if earlier is not None else 0)
        if more > 0:
            self._check_live(caller, more, resumed=resumed)
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

    def _check_live(self, caller: str, outputs: int, *, resumed: bool) -> None:
        """A request with more outputs than the limit is accepted if no other request is live."""
        most = self._limits.max_live_requests * (2 if resumed else 1)
        own = self._callers.get(caller, _Caller()).live_outputs
        over = self._live_outputs + outputs - most
        if self._live and over > 0 and (resumed or own + outputs > most // self._sharing(caller)):
            live = f"{self._live_outputs} outputs of {len(self._live)} requests are live, of at most {most}"
            raise self._refusal(live, "live_requests", self._turns.ended_in_s(over))
        most_own = self._limits.max_live_requests_per_token
        if caller and most_own is not None and own and own + outputs > most_own:
            live = f"{own} outputs of {caller} are live, of at most {most_own} for one token"
            raise self._refusal(live, "token_limit", self._turns.ended_in_s(own + outputs - most_own))

    def _sharing(self, caller: str) -> int:
        """Number of callers with live requests, including this one."""
        return len(self._callers) + (caller not in self._callers)

    def _check_queue(self, caller: str, tokens: int = 0) -> None:
        """A prompt above the limit is accepted if no other prompt waits."""
        most, own = self._limits.max_queued_tokens, self._callers.get(caller, _Caller()).queued_tokens
        full = self._queued_tokens + max(1, tokens) > most
        if self._queued_tokens and full and own + max(1, tokens) > most // self._sharing(caller):
            waits = f"{self._queued_tokens} prompt tokens are waiting, of at most {most}"
            raise self._refusal(waits, "queued_tokens", self._turns.wait_s(caller) or None)

    def _check_wait(self, caller: str, outputs: int, deadline_s: float | None) -> None:
        wait_s = self._turns.wait_s(caller, outputs)
        if deadline_s is not None and wait_s > max(0.0, deadline_s):
            late = f"it would start in about {wait_s:.1f} s, and its deadline is in {max(0.0, deadline_s):.1f} s"
            raise self._refusal(late, "deadline", wait_s)
        if wait_s > self._limits.max_queue_wait_s and not self._turns.is_due(caller):
            most = self._limits.max_queue_wait_s
            raise self._refusal(f"it would start in about {wait_s:.1f} s, and the limit is {most:g} s", "wait", wait_s)

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
    """An accepted request's share of the limits. A context manager that releases it at the end."""

    def __init__(self, admission: Admission, request_id: str, turn: Turn, *, resumed: bool) -> None:
        self._admission, self._turn = admission, turn
        self.request_id, self.caller, self.outputs, self.resumed = request_id, turn.caller, turn.outputs, resumed
        self.replace: Callable[[], None] = lambda: None  # ends this call, because another call resumed the request
        self._queued = 0
        self._closed = False

    def queue(self, prompt_tokens: int) -> None:
        """Counts the prompt as waiting for its first token. Raises OverloadedError if too many tokens wait."""
        self._admission._queue(self, prompt_tokens)
        self._queued += prompt_tokens
        self._turn.prompt_tokens = prompt_tokens

    def wait_for_places(self, start: Callable[[], None]) -> None:
        """Calls `start` when the request may be sent to a replica, possibly immediately."""
        self._turn.start = start
        turns = self._admission._turns
        (turns.resume if self.resumed else turns.enqueue)(self._turn)

    def started(self) -> None:
        """Stops counting the prompt as waiting, once its first token has arrived."""
        if self._queued:
            self._admission._count_queued(self.caller, -self._queued)
        self._queued = 0

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.started()
        self.release_places()
        self._admission._leave(self)

    def release_places(self) -> None:
        """Releases the places once replicas have finished the request, even if the client still reads."""
        self._admission._turns.release(self._turn)
