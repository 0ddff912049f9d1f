"""Server-sent events as bytes, and requests over ASGI: a body of bounded size, an end where the client leaves."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import pydantic_core
from starlette.types import Message, Receive, Send

from outrider.cluster.gateway.http.errors import HttpError

DONE = b"data: [DONE]\n\n"
CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass each event on at once
_BODY_TIMEOUT_S = 60.0
_LEFT = 499  # nginx's word for it; nobody reads it


def data(content: Any) -> bytes:  # anything that is JSON
    return b"data: " + pydantic_core.to_json(content) + b"\n\n"


def event(name: str, content: Any) -> bytes:
    return b"event: " + name.encode() + b"\n" + data(content)


async def read_body(receive: Receive, most: int) -> bytes:
    """HttpError if it is larger, does not come, or if the client leaves."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HttpError(_LEFT, "the client left")
                body += message.get("body", b"")
                if len(body) > most:
                    raise HttpError(413, f"the request is larger than the {most} bytes that this gateway takes")
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise HttpError(408, f"the request did not come within {_BODY_TIMEOUT_S:g} s") from None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, which is cancelled if the client leaves first."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        gone = not task.done()
        task.cancel()
        await asyncio.gather(task, left, return_exceptions=True)
    if not gone:
        task.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


class Writer:
    """One response. Cancels the request of a client that reads nothing for `timeout_s`."""

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
