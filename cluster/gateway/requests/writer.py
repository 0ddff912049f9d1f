"""Writes one call's events, with heartbeats in between, and ends the call of a client that does not read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc

from outrider.cluster.api.events import event_to_wire, heartbeat_to_wire
from outrider.cluster.api.generation import Event

_STATUS_WAIT_S = 60.0
CONTENDED_S = 0.5  # after this time without reads, a client's call ends if other requests wait
_LOOK_EVERY_S = 0.1


class SlowReaderError(Exception):
    """The client did not read for too long. `pending`: the message that is not sent yet."""

    def __init__(self, timeout_s: float, pending: "asyncio.Future[None]") -> None:
        super().__init__(f"the client has read nothing for {timeout_s:.1f} s")
        self._pending = pending

    async def wait_until_sent(self) -> None:
        """Waits a while until the message is sent, since gRPC sends no status before that."""
        await asyncio.wait({self._pending}, timeout=_STATUS_WAIT_S)


class EventWriter:
    """Writes to one gRPC context. Raises CancelledError if the call is over."""

    def __init__(self, context: Any, timeout_s: float, contended: Callable[[], bool] = lambda: False) -> None:
        """`timeout_s`: how long the client may take to read a message; CONTENDED_S while other requests wait."""
        self._context, self._timeout_s, self._contended = context, timeout_s, contended
        self._lock = asyncio.Lock()
        self._written_at = 0.0

    async def write(self, event: Event) -> None:
        """Raises SlowReaderError if the client does not read."""
        await self._write(event_to_wire(event))

    async def _write(self, message: Any) -> None:
        async with self._lock:
            sending = asyncio.ensure_future(self._context.write(message))
            sending.add_done_callback(_take_error)
            try:
                waited_s = await time_to_send(sending, self._timeout_s, self._contended)
            except asyncio.CancelledError:
                sending.cancel()
                raise
            if not sending.done():
                raise SlowReaderError(waited_s, sending)
            with cancelled_if_over():
                sending.result()
            self._written_at = asyncio.get_running_loop().time()

    @contextlib.asynccontextmanager
    async def beating(self, interval_s: float) -> AsyncIterator[None]:
        """Sends a heartbeat now, and whenever nothing was written for `interval_s`; none if that is 0."""
        if not interval_s:
            yield
            return
        task = asyncio.create_task(self._beat(interval_s))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _beat(self, interval_s: float) -> None:
        """Sends heartbeats until the client stops reading. The next event's write then raises the error."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(SlowReaderError):
            await self._write(heartbeat_to_wire())
            while True:
                await asyncio.sleep(max(0.0, self._written_at + interval_s - loop.time()))
                if loop.time() >= self._written_at + interval_s:
                    await self._write(heartbeat_to_wire())


async def time_to_send(sending: "asyncio.Future[None]", timeout_s: float, contended: Callable[[], bool]) -> float:
    """Waits until the message is sent or the client has taken too long. Returns the time waited in seconds.

    Each poll counts as its planned duration, so that delays of this event loop do not count against the client.
    """
    waited_s = 0.0
    while not sending.done() and waited_s < timeout_s:
        if waited_s >= min(CONTENDED_S, timeout_s) and contended():
            break
        look_s = min(_LOOK_EVERY_S, timeout_s - waited_s)
        await asyncio.wait({sending}, timeout=look_s)
        waited_s = round(waited_s + look_s, 6)
    return waited_s


def _take_error(sending: "asyncio.Future[None]") -> None:
    """Retrieves the error of a send that nothing waits for any more; asyncio would log it with a traceback."""
    if not sending.cancelled():
        sending.exception()


@contextlib.contextmanager
def cancelled_if_over() -> Iterator[None]:
    """Converts send errors to CancelledError if the call is over: sends may fail before the handler is cancelled."""
    try:
        yield
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error
