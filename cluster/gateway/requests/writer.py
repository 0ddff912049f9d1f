"""Writes one call's events, one at a time: with heartbeats in between, and an end for a client that does not read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc

from outrider.cluster.api.events import event_to_wire, heartbeat_to_wire
from outrider.cluster.api.generation import Event

_STATUS_WAIT_S = 60.0
WANTED_S = 0.5  # a client that has not read for so long gives way to others that wait
_LOOK_EVERY_S = 0.1


class SlowReaderError(Exception):
    """The client has not read for too long. `pending` is the message that it has no room for."""

    def __init__(self, timeout_s: float, pending: "asyncio.Future[None]") -> None:
        super().__init__(f"the client has read nothing for {timeout_s:.1f} s")
        self._pending = pending

    async def make_room(self) -> None:
        """Waits a while for room to say so: gRPC takes no status while a message is on its way."""
        await asyncio.wait({self._pending}, timeout=_STATUS_WAIT_S)


class EventWriter:
    """For one gRPC context. Cancelled where the call is over."""

    def __init__(self, context: Any, timeout_s: float, wanted: Callable[[], bool] = lambda: False) -> None:
        """`timeout_s`: how long the client may take to make room for a message; no more than WANTED_S while others want
        its place."""
        self._context, self._timeout_s, self._wanted = context, timeout_s, wanted
        self._lock = asyncio.Lock()
        self._written_at = 0.0

    async def write(self, event: Event) -> None:
        """SlowReaderError if the client does not read."""
        await self._write(event_to_wire(event))

    async def _write(self, message: Any) -> None:
        async with self._lock:
            sending = asyncio.ensure_future(self._context.write(message))
            sending.add_done_callback(_take_error)
            try:
                waited_s = await time_to_send(sending, self._timeout_s, self._wanted)
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
        """A heartbeat now, and whenever nothing was written for `interval_s`; none if that is 0."""
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
        """Until the client stops reading, which the next event's write says."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(SlowReaderError):
            await self._write(heartbeat_to_wire())
            while True:
                await asyncio.sleep(max(0.0, self._written_at + interval_s - loop.time()))
                if loop.time() >= self._written_at + interval_s:
                    await self._write(heartbeat_to_wire())


async def time_to_send(sending: "asyncio.Future[None]", timeout_s: float, wanted: Callable[[], bool]) -> float:
    """Until the message is on its way, or the client has taken too long: how long that was, in seconds.

    A look counts for its planned time, not for its real one: where this loop is held up, the client is not to blame.
    """
    waited_s = 0.0
    while not sending.done() and waited_s < timeout_s:
        if waited_s >= min(WANTED_S, timeout_s) and wanted():
            break
        look_s = min(_LOOK_EVERY_S, timeout_s - waited_s)
        await asyncio.wait({sending}, timeout=look_s)
        waited_s = round(waited_s + look_s, 6)
    return waited_s


def _take_error(sending: "asyncio.Future[None]") -> None:
    """Whoever left before it ended has no use for its error, and asyncio would log a traceback for each."""
    if not sending.cancelled():
        sending.exception()


@contextlib.contextmanager
def cancelled_if_over() -> Iterator[None]:
    """What is sent within fails where the call is over: gRPC may tell a sender before it cancels the handler."""
    try:
        yield
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error
