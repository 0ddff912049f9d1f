"""Decides which requests a gateway takes on: ids are unique, and what is live is bounded. No clock, no network."""

from types import TracebackType
from typing import Self

from outrider.cluster.errors import DuplicateRequestError
from outrider.workers.types.errors import OverloadedError

RETRY_AFTER_S = 1.0


class Admission:
    """Counts live requests, and the prompt tokens of those that wait for their first token."""

    def __init__(self, max_live_requests: int, max_queued_tokens: int) -> None:
        self._max_live_requests = max_live_requests
        self._max_queued_tokens = max_queued_tokens
        self._live: set[str] = set()
        self._queued_tokens = 0

    @property
    def live_requests(self) -> int:
        return len(self._live)

    @property
    def queued_tokens(self) -> int:
        return self._queued_tokens

    def enter(self, request_id: str) -> "Ticket":
        """Takes a request on until its ticket is closed. DuplicateRequestError or OverloadedError if it cannot."""
        if request_id in self._live:
            raise DuplicateRequestError(f"request_id {request_id!r} belongs to a request that is still live")
        if len(self._live) >= self._max_live_requests:
            raise OverloadedError(f"{len(self._live)} requests are live, as many as this gateway takes", RETRY_AFTER_S)
        self._live.add(request_id)
        return Ticket(self, request_id)

    def _queue(self, tokens: int) -> None:
        """A prompt too long for the whole queue is taken when it is alone, or it never would be."""
        if self._queued_tokens and self._queued_tokens + tokens > self._max_queued_tokens:
            raise OverloadedError(
                f"{self._queued_tokens} prompt tokens wait for their turn, of at most {self._max_queued_tokens}",
                RETRY_AFTER_S,
            )
        self._queued_tokens += tokens

    def _unqueue(self, tokens: int) -> None:
        self._queued_tokens -= tokens

    def _leave(self, request_id: str) -> None:
        self._live.discard(request_id)


class Ticket:
    """One request's place. A context manager: leaving gives everything back."""

    def __init__(self, admission: Admission, request_id: str) -> None:
        self._admission = admission
        self.request_id = request_id
        self._queued = 0

    def queue(self, prompt_tokens: int) -> None:
        """The prompt waits for its first token. OverloadedError if too much waits already."""
        self._admission._queue(prompt_tokens)
        self._queued += prompt_tokens

    def started(self) -> None:
        """The first token came; the prompt waits no longer."""
        self._admission._unqueue(self._queued)
        self._queued = 0

    def close(self) -> None:
        self.started()
        self._admission._leave(self.request_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
