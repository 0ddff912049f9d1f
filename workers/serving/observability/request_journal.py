"""Writes a log line for each request that ends at a leader, and its spans if a collector is configured."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from outrider.workers.serving.observability.request_times import RequestRecord
from outrider.workers.serving.observability.tracing import Attributes, Tracing
from outrider.workers.types import logs
from outrider.workers.types.requests.trace_context import TraceContext

log = logging.getLogger("outrider.requests")


class RequestJournal:
    """A separate thread writes, so that `ended` returns at once and does not delay the engine's thread."""

    def __init__(self, tracing: Tracing, replica: str, generation: int) -> None:
        self._tracing, self._replica, self._generation = tracing, replica, generation
        self._records: queue.SimpleQueue[RequestRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="request-journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ended(self, record: RequestRecord) -> None:
        self._records.put(record)

    def close(self) -> None:
        """Returns when all ended requests are written."""
        self._records.put(None)
        self._thread.join()
        self._tracing.close()

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            self._write(record)

    def _write(self, record: RequestRecord) -> None:
        request, seen = record.request, record.observation
        logs.event(
            log,
            logging.INFO,
            "request ended",
            request_id=request.client_request_id or request.request_id,
            trace_id=request.trace_id,
            reason=record.reason,
            **({"error": record.error} if record.error else {}),
            prompt_tokens=len(request.prompt_token_ids),
            completion_tokens=record.tokens,
            rounds=record.rounds,
            drafted=record.drafted,
            accepted=record.accepted,
            queued_s=_rounded(seen.queued_s),
            time_to_first_token_s=_rounded(seen.time_to_first_token_s),
            seconds=_rounded(seen.latency_s),
        )
        self._trace(record)

    def _trace(self, record: RequestRecord) -> None:
        """One span from submission to end, with child spans for prefill and decode if they took place."""
        at = _epoch_ns(time.time_ns() - round(time.monotonic() * 1e9))
        span = self._tracing.begin("engine", record.request.trace, at_ns=at(record.began))
        if record.first_round is not None:
            first = record.ended if record.first_token is None else record.first_token
            self._part("prefill", span.context, at(record.first_round), at(first))
        if record.first_token is not None:
            self._part("decode", span.context, at(record.first_token), at(record.ended))
        span.end(self._attributes(record), error=record.error, at_ns=at(record.ended))

    def _part(self, name: str, parent: TraceContext, began_ns: int, ended_ns: int) -> None:
        self._tracing.begin(name, parent, inside=True, at_ns=began_ns).end({}, at_ns=ended_ns)

    def _attributes(self, record: RequestRecord) -> Attributes:
        request, queued_s = record.request, record.observation.queued_s
        return {
            "gen_ai.response.id": request.client_request_id or request.request_id,
            "gen_ai.response.finish_reasons": [record.reason],
            "gen_ai.usage.input_tokens": len(request.prompt_token_ids),
            "gen_ai.usage.output_tokens": record.tokens,
            "outrider.replica": self._replica,
            "outrider.generation": self._generation,
            "outrider.rounds": record.rounds,
            "outrider.drafted": record.drafted,
            "outrider.accepted": record.accepted,
            **({"outrider.queued_s": queued_s} if queued_s is not None else {}),
        }


def _epoch_ns(offset: int) -> Callable[[float], int]:
    """A function from monotonic seconds to nanoseconds since 1970."""
    return lambda seconds: offset + round(seconds * 1e9)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
