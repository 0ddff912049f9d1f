"""One response over ASGI: runs its calls, sends their events, and cancels them if the client disconnects."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from outrider.cluster.api.collector import Collector
from outrider.cluster.api.errors import GenerationFailedError
from outrider.cluster.api.generation import Event, Failed
from outrider.cluster.gateway.http import sse
from outrider.cluster.gateway.http.answer import Answer
from outrider.cluster.gateway.http.errors import GatewayShutdownError, Problem, problem_of, renamed
from outrider.cluster.gateway.http.sse import Writer, while_connected
from outrider.cluster.gateway.requests.inference import Inference
from outrider.proto import inference_pb2
from outrider.workers.types import logs
from outrider.workers.types.requests.trace_context import TraceContext

log = logging.getLogger("outrider.gateway.http")

Shape = Callable[[Problem], dict[str, Any]]  # formats an error body
CallEvent = tuple[int, Event, Sequence[int]]  # the call's index, its event, the prompt's token ids
_INTERNAL = Problem(status=500, message="the gateway failed: see its log")
_PATIENCE = ("x-stainless-read-timeout", "x-stainless-timeout")


def client_timeout_s(headers: Mapping[str, str]) -> float | None:
    """How long the client waits for a first byte, from the headers of OpenAI's and Anthropic's libraries; else None."""
    for name in _PATIENCE:
        with contextlib.suppress(ValueError):
            if (patience_s := float(headers.get(name, "nan"))) >= 0:
                return patience_s
    return None


class Reply:
    """An ASGI application for one request."""

    def __init__(
        self,
        answer: Answer,
        messages: Sequence[inference_pb2.GenerateRequest],
        names: Mapping[str, str],
        inference: Inference,
        headers: Mapping[str, str],
        shape: Shape,
        write_timeout_s: float,
    ) -> None:
        """`messages`: `answer.calls` as messages. `names`: see Body.names. `headers`: of the response."""
        self._answer, self._messages, self._names, self._inference = answer, messages, names, inference
        self._headers, self._shape, self._write_timeout_s = headers, shape, write_timeout_s
        self._client_timeout_s: float | None = None
        self._writer: Writer | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = self._writer = Writer(send, self._write_timeout_s, lambda: self._inference.contended)
        headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]]
        parent, self._client_timeout_s = TraceContext.of(headers), client_timeout_s(dict(headers))
        name = f"{scope['method']} {scope['path']}"
        await while_connected(receive, self._answered(writer, name, parent))

    async def _answered(self, writer: Writer, name: str, parent: TraceContext | None) -> None:
        events = self._all_events(name, parent)
        try:
            async with contextlib.aclosing(events):
                await (self._stream(events, writer) if self._answer.streams else self._whole(events, writer))
        except Exception as error:
            problem = problem_of(renamed(error, self._names))
            if problem is None:
                logs.event(log, logging.ERROR, "a request failed", error=repr(error))
                log.debug("a request failed", exc_info=error)
                problem = _INTERNAL
            await self._refuse(problem, writer)

    async def _refuse(self, problem: Problem, writer: Writer) -> None:
        if not writer.started:
            await writer.whole(problem.status, self._shape(problem), {**self._headers, **problem.headers})
            return
        for chunk in self._answer.failure(problem):
            await writer.write(chunk)
        await writer.write(b"", more=False)

    async def _whole(self, events: AsyncGenerator[CallEvent], writer: Writer) -> None:
        collectors = [Collector(call.params.n) for call in self._answer.calls]
        prompts: list[Sequence[int]] = [() for _ in collectors]
        async for number, event, prompt in events:
            collectors[number].add(event)
            prompts[number] = prompt
        content = self._answer.whole([collector.result() for collector in collectors], prompts)
        await writer.whole(200, content, self._headers)

    async def _stream(self, events: AsyncGenerator[CallEvent], writer: Writer) -> None:
        async for number, event, prompt in events:
            if not writer.started:
                await writer.start(200, sse.CONTENT_TYPE, {**self._headers, **sse.HEADERS})
            if chunks := b"".join(self._answer.chunks(number, event, prompt)):
                await writer.write(chunks)
        await writer.write(b"".join(self._answer.end()), more=False)

    async def _all_events(self, name: str, parent: TraceContext | None) -> AsyncGenerator[CallEvent]:
        """Runs all calls concurrently. GenerationFailedError if one fails after it was accepted."""
        if len(self._messages) == 1:
            async with contextlib.aclosing(self._events(0, name, parent)) as events:
                async for event in events:
                    yield event
            return
        queue: asyncio.Queue[CallEvent | Exception | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._pump(n, name, parent, queue)) for n in range(len(self._messages))]
        try:
            for _ in tasks:
                while (one := await queue.get()) is not None:
                    if isinstance(one, Exception):
                        raise one
                    yield one
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self, number: int, name: str, parent: TraceContext | None, queue: "asyncio.Queue[CallEvent | Exception | None]"
    ) -> None:
        try:
            async with contextlib.aclosing(self._events(number, name, parent)) as events:
                async for event in events:
                    queue.put_nowait(event)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    async def _events(self, number: int, name: str, parent: TraceContext | None) -> AsyncGenerator[CallEvent]:
        with self._inference.recorded(name, parent) as record:
            record.cancelled_as = self._cancelled_as
            events = self._inference.events(self._messages[number], record, self._client_timeout_s)
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Failed):
                        raise (GatewayShutdownError if event.resumable else GenerationFailedError)(event.message)
                    assert record.stream is not None  # accepted
                    yield number, event, record.stream.request.prompt_token_ids

    def _cancelled_as(self) -> str:
        return "slow_reader" if self._writer is not None and self._writer.slow else "cancelled"
