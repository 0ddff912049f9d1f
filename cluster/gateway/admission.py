"""Decides which requests a gateway takes on: ids are unique, and what is live is bounded. No network."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from outrider.cluster.errors import DuplicateRequestError
from outrider.workers.types.errors import OverloadedError

RETRY_AFTER_S = 1.0  # where nothing has left yet to tell by
LEAST_RETRY_S = 0.1
MOST_RETRY_S = 60.0
MOST_OUTPUTS = 128
_WINDOW_S = 30.0


class _Flow:
    """How much leaves in a second, of late."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left: deque[tuple[float, int]] = deque()
        self._sum = 0

    def leave(self, amount: int) -> None:
        self._left.append((self._clock(), amount))
        self._sum += amount

    def retry_after_s(self, amount: int) -> float:
        """How long until so much more has left, within bounds."""
        now = self._clock()
        while self._left and self._left[0][0] < now - _WINDOW_S:
            self._sum -= self._left.popleft()[1]
        if not self._sum:
            return RETRY_AFTER_S
        wait_s = amount * (now - self._left[0][0]) / self._sum
        return min(MOST_RETRY_S, max(LEAST_RETRY_S, wait_s))


class Admission:
    """Counts the outputs of live requests, and the prompt tokens of those that wait for their first token.

    A refusal says when there may be room, by what has left of late.

    A request that is resumed was accepted before, here or at a gateway that is gone: it is let in beyond the limits,
    and takes the place of its old self. Anybody may say that, so twice as many may be live in all and not more.
    """

    def __init__(
        self, max_live_requests: int, max_queued_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`max_live_requests`: a request counts as often as it has outputs."""
        self._live_outputs = 0
        self._ended, self._started = _Flow(clock), _Flow(clock)
        self._max_live_requests = max_live_requests
        self._max_queued_tokens = max_queued_tokens
        self._live: dict[str, Ticket] = {}
        self._queued_tokens = 0

    @property
    def live_requests(self) -> int:
        return len(self._live)

    @property
    def queued_tokens(self) -> int:
        return self._queued_tokens

    def enter(
        self,
        request_id: str,
        *,
        caller: str = "",
        resumed: bool = False,
        outputs: int = 1,
    ) -> "Ticket":
        """Takes a request on until its ticket is closed. DuplicateRequestError or OverloadedError if it cannot: before
        any work is done for it."""
        earlier = self._live.get(request_id)
        if earlier is not None and not (resumed and earlier.caller == caller):
            raise DuplicateRequestError(f"request_id {request_id!r} belongs to a request that is still live")
        outputs = max(1, min(MOST_OUTPUTS, outputs))
        if earlier is None:
            self._check_room(outputs, self._max_live_requests * (2 if resumed else 1))
        if not resumed:
            self._check_queue()
        if earlier is not None:
            earlier.close()
            earlier.replace()
        ticket = self._live[request_id] = Ticket(self, request_id, caller, outputs, resumed=resumed)
        self._live_outputs += outputs
        return ticket

    def _check_room(self, outputs: int, most: int) -> None:
        """A request with more outputs than there is room for in all is taken when it is alone."""
        over = self._live_outputs + outputs - most
        if self._live and over > 0:
            raise OverloadedError(
                f"{self._live_outputs} outputs of {len(self._live)} requests are live, of at most {most}",
                self._ended.retry_after_s(over),
            )

    def _check_queue(self) -> None:
        over = self._queued_tokens - self._max_queued_tokens
        if over >= 0:
            raise self._queue_full(over + 1)

    def _queue_full(self, over: int) -> OverloadedError:
        return OverloadedError(
            f"{self._queued_tokens} prompt tokens wait for their turn, of at most {self._max_queued_tokens}",
            self._started.retry_after_s(over),
        )

    def _queue(self, tokens: int, *, resumed: bool) -> None:
        """A prompt too long for the whole queue is taken when it is alone, or it never would be."""
        if not resumed and self._queued_tokens and self._queued_tokens + tokens > self._max_queued_tokens:
            raise self._queue_full(self._queued_tokens + tokens - self._max_queued_tokens)
        self._queued_tokens += tokens

    def _unqueue(self, tokens: int) -> None:
        self._queued_tokens -= tokens
        if tokens:
            self._started.leave(tokens)

    def _leave(self, ticket: "Ticket") -> None:
        if self._live.get(ticket.request_id) is ticket:
            del self._live[ticket.request_id]
            self._live_outputs -= ticket.outputs
            self._ended.leave(ticket.outputs)


class Ticket:
    """One request's place. A context manager: leaving gives everything back."""

    def __init__(self, admission: Admission, request_id: str, caller: str, outputs: int, *, resumed: bool) -> None:
        self._admission = admission
        self.request_id, self.caller, self.outputs = request_id, caller, outputs
        self.replace: Callable[[], None] = lambda: None  # ends the request: it goes on under another ticket
        self._resumed = resumed
        self._queued = 0

    def queue(self, prompt_tokens: int) -> None:
        """The prompt waits for its first token. OverloadedError if too much waits already."""
        self._admission._queue(prompt_tokens, resumed=self._resumed)
        self._queued += prompt_tokens

    def started(self) -> None:
        """The first token came; the prompt waits no longer."""
        self._admission._unqueue(self._queued)
        self._queued = 0

    def close(self) -> None:
        self.started()
        self._admission._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
