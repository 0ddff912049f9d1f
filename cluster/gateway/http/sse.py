"""Server-sent events, and ASGI helpers: reading a body of limited size, noticing disconnects, writing a response."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import pydantic_core
from starlette.types import Message, Receive, Send

from outrider.cluster.gateway.http.errors import HttpError

DONE = b"data: [DONE]\n\n"
_BODY_TIMEOUT_S = 60.0
_CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; the client is gone and does not receive it


def data(content: Any) -> bytes:  # anything that is JSON
    return b"data: " + pydantic_core.to_json(content) + b"\n\n"


def event(name: str, content: Any) -> bytes:
    return b"event: " + name.encode() + b"\n" + data(content)


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
                    raise HttpError(413, f"the request is larger than the {most} bytes that this gateway takes")
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
    """Writes one response. CancelledError if the client reads nothing for `timeout_s`."""

    def __init__(self, send: Send, timeout_s: float) -> None:
        self._send, self._timeout_s = send, timeout_s
        self.started = False

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.started = True
        pairs = [(b"content-type", content_type.encode())]
        pairs += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, body: bytes, *, more: bool = True) -> None:
        message: Message = {"type": "http.response.body", "body": body, "more_body": more}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            raise asyncio.CancelledError(f"the client has read nothing for {self._timeout_s:g} s") from None

    async def whole(self, status: int, content: Any, headers: Mapping[str, str]) -> None:
        body = pydantic_core.to_json(content)
        await self.start(status, "application/json", {**headers, "Content-Length": str(len(body))})
        await self.write(body, more=False)
