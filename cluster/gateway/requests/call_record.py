"""The record of one Generate call, from which its log line, metrics and span are written."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from outrider.cluster.api.generation import ChatPrompt, GenerateCall
from outrider.cluster.gateway.access.auth import CALLER
from outrider.cluster.gateway.observability.known_metrics import Ended, KnownMetrics
from outrider.cluster.gateway.observability.metrics import GatewayMetrics
from outrider.cluster.gateway.requests.stream import RequestStream
from outrider.workers.serving.observability.tracing import Span
from outrider.workers.types import logs

log = logging.getLogger("outrider.gateway.service")

_OK = ("ok", "cancelled")  # statuses that are not server errors
# Request attributes of the GenAI semantic conventions.
_REQUEST_ATTRIBUTES: Mapping[str, str] = {
    "gen_ai.request.choice.count": "n",
    "gen_ai.request.max_tokens": "max_tokens",
    "gen_ai.request.temperature": "temperature",
    "gen_ai.request.top_p": "top_p",
    "gen_ai.request.top_k": "top_k",
    "gen_ai.request.frequency_penalty": "frequency_penalty",
    "gen_ai.request.presence_penalty": "presence_penalty",
}


class CallRecord:
    """Filled in while the call runs. Times are in seconds."""

    def __init__(self, span: Span) -> None:
        self.request_id = ""
        self.caller = CALLER.get()  # "" without tokens
        self.status = "internal"
        self.call: GenerateCall | None = None  # once it was parsed
        self.stream: RequestStream | None = None  # once it was accepted
        self.replaced = False  # another call resumed the request
        self.cancelled_as: Callable[[], str] = lambda: "cancelled"  # the status of a call that was cancelled
        self.context = span.context
        self._span = span
        self._began = time.monotonic()

    @property
    def names(self) -> dict[str, object]:
        """The fields of every log line of the request."""
        caller = {"caller": self.caller} if self.caller else {}
        return {"request_id": self.request_id, "trace_id": self.context.trace_id, **caller}

    @property
    def place(self) -> dict[str, object]:
        """The replica that it runs on or ran on last; empty if none."""
        if self.stream is None:
            return {}
        return {"replica": self.stream.replica.id.name, "generation": self.stream.replica.id.generation}

    def end_early(self, task: "asyncio.Task[None] | None") -> None:
        """Ends the call, which `task` serves, and cancels its request at the engine immediately."""
        self.replaced = True
        if self.stream is not None:
            self.stream.close()
        if task is not None:
            task.cancel()

    def end(self, metrics: GatewayMetrics, known: KnownMetrics, model: str) -> None:
        """`model`: name of the served model, if known."""
        seconds, first_token_s = time.monotonic() - self._began, self._first_token_s()
        metrics.requests.labels(status=self.status).inc()
        if self.stream is not None:
            metrics.latency.observe(seconds)
            known.count(self._ended(self.stream, seconds, first_token_s), model)
        if first_token_s is not None:
            metrics.time_to_first_token.observe(first_token_s)
        fields = {**self.names, "status": self.status, **self.place, **self._usage(), "seconds": round(seconds, 4)}
        logs.event(log, logging.INFO, "request ended", **fields)
        self._span.end(dict(self._attributes(model)), error="" if self.status in _OK else self.status)

    def _ended(self, stream: RequestStream, seconds: float, first_token_s: float | None) -> Ended:
        later = stream.usage.completion_tokens - len(stream.finish_reasons)  # without the first token of each output
        return Ended(
            operation=self._operation,
            seconds=seconds,
            first_token_s=first_token_s,
            token_s=None if first_token_s is None or later < 1 else (seconds - first_token_s) / later,
            usage=stream.usage,
            finish_reasons=list(stream.finish_reasons.values()),
            error="" if self.status in _OK else self.status,
        )

    @property
    def _operation(self) -> str:
        return "chat" if self.call is not None and isinstance(self.call.prompt, ChatPrompt) else "text_completion"

    def _first_token_s(self) -> float | None:
        stream = self.stream
        return None if stream is None or stream.first_token_at is None else stream.first_token_at - self._began

    def _usage(self) -> dict[str, object]:
        if self.stream is None:
            return {}
        names = ("prompt_tokens", "completion_tokens", "rounds", "drafted", "accepted")
        return {name: getattr(self.stream.usage, name) for name in names}

    def _attributes(self, model: str) -> Iterator[tuple[str, Any]]:
        """Span attributes, with the names of the GenAI conventions where they exist."""
        yield "gen_ai.provider.name", "outrider"
        yield "gen_ai.request.model", model
        yield "gen_ai.response.id", self.request_id
        yield "outrider.status", self.status
        if self.status not in _OK:
            yield "error.type", self.status
        if self.call is not None:
            yield "gen_ai.operation.name", self._operation
            requested = ((name, getattr(self.call.params, field)) for name, field in _REQUEST_ATTRIBUTES.items())
            yield from ((name, value) for name, value in requested if value is not None)
        if self.stream is not None:
            yield from _answer(self.stream)
        if (first_token_s := self._first_token_s()) is not None:
            yield "gen_ai.response.time_to_first_chunk", first_token_s


def _answer(stream: RequestStream) -> Iterator[tuple[str, Any]]:
    usage, reasons = stream.usage, stream.finish_reasons
    yield "gen_ai.response.finish_reasons", [reasons[index] for index in sorted(reasons)]
    yield "gen_ai.request.seed", stream.request.seed
    yield "gen_ai.usage.input_tokens", usage.prompt_tokens
    yield "gen_ai.usage.cache_read.input_tokens", usage.cached_tokens
    yield "gen_ai.usage.output_tokens", usage.completion_tokens
    yield "outrider.replica", stream.replica.id.name
    yield "outrider.generation", stream.replica.id.generation
    yield "outrider.moves", stream.moves
    yield "outrider.rounds", usage.rounds
    yield "outrider.drafted", usage.drafted
    yield "outrider.accepted", usage.accepted
    if stream.queued_s is not None:
        yield "outrider.queued_s", stream.queued_s
