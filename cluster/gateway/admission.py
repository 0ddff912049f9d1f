"""Decides which requests a gateway takes on: ids are unique, and what is live is bounded. No clock, no network."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from outrider.cluster.errors import DuplicateRequestError
from outrider.workers.types.errors import OverloadedError

RETRY_AFTER_S = 1.0


class Admission:
    """Counts live requests, and the prompt tokens of those that wait for their first token.

    A request that is resumed was accepted before, here or at a gateway that is gone: it is let in beyond the limits,
    and takes the place of its old self. Anybody may say that, so twice as many may be live in all and not more.
    """

    def __init__(self, max_live_requests: int, max_queued_tokens: int) -> None:
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

    def enter(self, request_id: str, *, caller: str = "", resumed: bool = False) -> "Ticket":
        """Takes a request on until its ticket is closed. DuplicateRequestError or OverloadedError if it cannot."""
        earlier = self._live.get(request_id)
        if earlier is not None and not (resumed and earlier.caller == caller):
            raise DuplicateRequestError(f"request_id {request_id!r} belongs to a request that is still live")
        most = self._max_live_requests * (2 if resumed else 1)
        if earlier is None and len(self._live) >= most:
            raise OverloadedError(f"{len(self._live)} requests are live, as many as this gateway takes", RETRY_AFTER_S)
        if earlier is not None:
            earlier.close()
            earlier.replace()
        ticket = self._live[request_id] = Ticket(self, request_id, caller, resumed=resumed)
        return ticket

    def _queue(self, tokens: int, *, resumed: bool) -> None:
        """A prompt too long for the whole queue is taken when it is alone, or it never would be."""
        if not resumed and self._queued_tokens and self._queued_tokens + tokens > self._max_queued_tokens:
            raise OverloadedError(
                f"{self._queued_tokens} prompt tokens wait for their turn, of at most {self._max_queued_tokens}",
                RETRY_AFTER_S,
            )
        self._queued_tokens += tokens

    def _unqueue(self, tokens: int) -> None:
        self._queued_tokens -= tokens

    def _leave(self, ticket: "Ticket") -> None:
        if self._live.get(ticket.request_id) is ticket:
            del self._live[ticket.request_id]


class Ticket:
    """One request's place. A context manager: leaving gives everything back."""

    def __init__(self, admission: Admission, request_id: str, caller: str, *, resumed: bool) -> None:
        self._admission = admission
        self.request_id, self.caller = request_id, caller
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
