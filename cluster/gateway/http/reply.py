"""One answer over ASGI: the events of its calls, gathered or streamed, and an end if the client leaves."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from outrider.cluster.client_call import Collector
from outrider.cluster.errors import GenerationFailedError
from outrider.cluster.gateway.http import sse
from outrider.cluster.gateway.http.answer import Answer
from outrider.cluster.gateway.http.errors import LeftError, Problem, problem_of
from outrider.cluster.gateway.http.sse import Writer, while_connected
from outrider.cluster.gateway.inference import Inference
from outrider.cluster.generation import Event, Failed
from outrider.proto import inference_pb2
from outrider.workers import logs
from outrider.workers.types.trace_context import TraceContext

log = logging.getLogger("outrider.gateway.http")

Shape = Callable[[Problem], dict[str, Any]]  # of an error
Heard = tuple[int, Event, Sequence[int]]  # the call's number, what it says, the prompt's token ids
_INTERNAL = Problem(status=500, message="the gateway failed: see its log")


class Reply:
    """An ASGI application for one request."""

    def __init__(
        self,
        answer: Answer,
        messages: Sequence[inference_pb2.GenerateRequest],
        inference: Inference,
        headers: Mapping[str, str],
        shape: Shape,
        write_timeout_s: float,
    ) -> None:
        """`messages`: the answer's calls. `headers`: of the response."""
        self._answer, self._messages, self._inference = answer, messages, inference
        self._headers, self._shape, self._write_timeout_s = headers, shape, write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = Writer(send, self._write_timeout_s)
        parent = TraceContext.of((key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"])
        name = f"{scope['method']} {scope['path']}"
        await while_connected(receive, self._answered(writer, name, parent))

    async def _answered(self, writer: Writer, name: str, parent: TraceContext | None) -> None:
        events = self._heard(name, parent)
        try:
            async with contextlib.aclosing(events):
                await (self._stream(events, writer) if self._answer.streams else self._whole(events, writer))
        except Exception as error:
            problem = problem_of(error)
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

    async def _whole(self, events: AsyncGenerator[Heard], writer: Writer) -> None:
        collectors = [Collector(call.params.n) for call in self._answer.calls]
        prompts: list[Sequence[int]] = [() for _ in collectors]
        async for number, event, prompt in events:
            collectors[number].add(event)
            prompts[number] = prompt
        content = self._answer.whole([collector.result() for collector in collectors], prompts)
        await writer.whole(200, content, self._headers)

    async def _stream(self, events: AsyncGenerator[Heard], writer: Writer) -> None:
        async for number, event, prompt in events:
            if not writer.started:
                await writer.start(200, sse.CONTENT_TYPE, {**self._headers, **sse.HEADERS})
            if chunks := b"".join(self._answer.chunks(number, event, prompt)):
                await writer.write(chunks)
        await writer.write(b"".join(self._answer.end()), more=False)

    async def _heard(self, name: str, parent: TraceContext | None) -> AsyncGenerator[Heard]:
        """Of all calls, side by side. GenerationFailedError if one fails once it was accepted."""
        if len(self._messages) == 1:
            async with contextlib.aclosing(self._events(0, name, parent)) as events:
                async for heard in events:
                    yield heard
            return
        queue: asyncio.Queue[Heard | Exception | None] = asyncio.Queue()
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
        self, number: int, name: str, parent: TraceContext | None, queue: "asyncio.Queue[Heard | Exception | None]"
    ) -> None:
        try:
            async with contextlib.aclosing(self._events(number, name, parent)) as events:
                async for heard in events:
                    queue.put_nowait(heard)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    async def _events(self, number: int, name: str, parent: TraceContext | None) -> AsyncGenerator[Heard]:
        with self._inference.recorded(name, parent) as record:
            async with contextlib.aclosing(self._inference.events(self._messages[number], record)) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise (LeftError if event.resumable else GenerationFailedError)(event.message)
                    assert record.stream is not None  # accepted
                    yield number, event, record.stream.request.prompt_token_ids
