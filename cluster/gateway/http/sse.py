"""Server-sent events, and ASGI helpers: read a body of limited size, detect disconnects, write a response."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pydantic_core
from starlette.types import Message, Receive, Send

from outrider.cluster.gateway.http.errors import HttpError
from outrider.cluster.gateway.requests.writer import time_to_send

DONE = b"data: [DONE]\n\n"
CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies must not buffer events
_JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded")
_BODY_TIMEOUT_S = 60.0
_CLIENT_CLOSED_REQUEST = 499  # nginx's status in logs; the disconnected client does not receive it


def data(content: Any) -> bytes:  # anything that is JSON
    return b"data: " + pydantic_core.to_json(content) + b"\n\n"


def event(name: str, content: Any) -> bytes:
    return b"event: " + name.encode() + b"\n" + data(content)


def check_is_json(headers: Mapping[str, str]) -> None:
    """HttpError if they say that the body is something else. The type that curl sends by default is accepted."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _JSON_TYPES and not kind.endswith("+json"):
        raise HttpError(415, f"content-type must be application/json, got {kind[:100]!r}")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise HttpError(415, f"content-encoding is not supported: send the body uncompressed, got {coding[:100]!r}")


async def read_body(receive: Receive, most: int) -> bytes:
    """HttpError if the body is larger than `most` bytes, takes too long, or if the client disconnects."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HttpError(_CLIENT_CLOSED_REQUEST, "the client disconnected")
                body += message.get("body", b"")
                if len(body) > most:
                    raise HttpError(413, f"the request is larger than this gateway's limit of {most} bytes")
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise HttpError(408, f"the request body did not arrive within {_BODY_TIMEOUT_S:g} s") from None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, and cancels it if the client disconnects first."""
    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnect.cancel()
        cancelled = not task.done()
        task.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)
    if not cancelled:
        task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


class Writer:
    """Writes one response.

    Raises CancelledError if the client reads nothing for `timeout_s`, or for CONTENDED_S while other requests wait.
    """

    def __init__(self, send: Send, timeout_s: float, contended: Callable[[], bool]) -> None:
        self._send, self._timeout_s, self._contended = send, timeout_s, contended
        self.slow = False  # the client did not read for too long
        self.started = False

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.started = True
        pairs = [(b"content-type", content_type.encode())]
        pairs += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, body: bytes, *, more: bool = True) -> None:
        message: Message = {"type": "http.response.body", "body": body, "more_body": more}
        sending = asyncio.ensure_future(self._send(message))
        try:
            waited_s = await time_to_send(sending, self._timeout_s, self._contended)
            if not sending.done():
                await self._give_up(waited_s)
            sending.result()
        finally:
            sending.cancel()

    async def _give_up(self, waited_s: float) -> None:
        """Cancels the writing task."""
        self.slow = True
        task = asyncio.current_task()
        assert task is not None
        task.cancel(f"the client has read nothing for {waited_s:.1f} s")
        await asyncio.sleep(0)

    async def whole(self, status: int, content: Any, headers: Mapping[str, str]) -> None:
        body = pydantic_core.to_json(content)
        await self.start(status, "application/json", {**headers, "Content-Length": str(len(body))})
        await self.write(body, more=False)
