"""The cluster's status as JSON, like `outrider status --json`: once, or as a stream of changes."""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from starlette.types import Receive, Scope, Send

from outrider.cluster.api.errors import UnavailableError
from outrider.cluster.api.status import status_from_wire
from outrider.cluster.gateway.http import sse
from outrider.cluster.gateway.http.errors import Problem, problem_of
from outrider.cluster.gateway.routing.controller_link import ControllerLink
from outrider.proto import cluster_pb2


def _as_json(status: cluster_pb2.GetStatusResponse) -> dict[str, Any]:
    return dataclasses.asdict(status_from_wire(status))


async def cluster_status(controller: ControllerLink) -> dict[str, Any]:
    """Raises UnavailableError if the controller does not answer."""
    try:
        return _as_json(await controller.get_status())
    except grpc.aio.AioRpcError as error:
        raise _silent(controller, error) from None


def _silent(controller: ControllerLink, error: grpc.aio.AioRpcError) -> UnavailableError:
    return UnavailableError(f"the controller at {controller.address} answered: {error.details()}")


class StatusStream:
    """An ASGI application: sends each changed status as an event until the client or the controller disconnects."""

    def __init__(self, controller: ControllerLink, write_timeout_s: float) -> None:
        self._controller, self._write_timeout_s = controller, write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await sse.while_connected(receive, self._stream(sse.Writer(send, self._write_timeout_s, lambda: False)))

    async def _stream(self, writer: sse.Writer) -> None:
        try:
            async with contextlib.aclosing(self._statuses()) as statuses:
                async for status in statuses:
                    if not writer.started:
                        await writer.start(200, sse.CONTENT_TYPE, sse.HEADERS)
                    await writer.write(sse.data(status))
        except UnavailableError as error:
            problem = problem_of(error)
            assert problem is not None
            await self._refuse(problem, writer)

    async def _refuse(self, problem: Problem, writer: sse.Writer) -> None:
        if not writer.started:
            await writer.whole(problem.status, problem.openai(), problem.headers)
        else:
            await writer.write(sse.data(problem.openai()), more=False)

    async def _statuses(self) -> AsyncGenerator[dict[str, Any]]:
        watch = self._controller.watch_status()
        try:
            async for response in watch:
                yield _as_json(response.status)
        except grpc.aio.AioRpcError as error:
            raise _silent(self._controller, error) from None
        raise UnavailableError("the controller ended the stream")
