"""Runs one request from gRPC or HTTP: checks, admits, routes and records it, and moves it if its replica is lost.

Other modules make the decisions; this one calls them in order. Independent of gRPC contexts and HTTP.
"""

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from outrider.cluster.api.calls import call_from_wire
from outrider.cluster.api.errors import UnavailableError
from outrider.cluster.api.generation import Event, GenerateCall
from outrider.cluster.gateway.observability.known_metrics import KnownMetrics
from outrider.cluster.gateway.observability.metrics import GatewayMetrics
from outrider.cluster.gateway.requests.admission import Admission, Ticket
from outrider.cluster.gateway.requests.call_record import CallRecord
from outrider.cluster.gateway.requests.limits import RequestLimits
from outrider.cluster.gateway.requests.preparation import PreparedRequest, is_small, prepare
from outrider.cluster.gateway.requests.prompts import PromptEncoder, tools_in
from outrider.cluster.gateway.requests.refusals import REFUSALS, status_code
from outrider.cluster.gateway.requests.resumption import outputs_to_continue
from outrider.cluster.gateway.requests.stream import RequestStream
from outrider.cluster.gateway.requests.writer import SlowReaderError
from outrider.cluster.gateway.routing.fleet import Fleet
from outrider.cluster.gateway.routing.replica import ReplicaConnection
from outrider.cluster.gateway.routing.router import ReplicaId
from outrider.proto import inference_pb2
from outrider.workers.serving.observability.tracing import Tracing
from outrider.workers.types import logs
from outrider.workers.types.errors import EngineStoppedError, OverloadedError
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.trace_context import TraceContext

log = logging.getLogger("outrider.gateway.service")

_THREADS = 4  # for the preparation of large requests
_FEW_TOKENS = 200  # resumed tokens, detokenized in about half a millisecond
T = TypeVar("T")
MOST_CRASHES = 2  # consecutive replicas lost while computing a request's next token: it is assumed to be the cause
MOST_MOVES = 16  # consecutive moves without a new token


class Inference:
    """Runs in one event loop. `encoder` is None until the model is known. `draining` refuses new requests."""

    def __init__(
        self,
        admission: Admission,
        fleet: Fleet,
        metrics: GatewayMetrics,
        known_metrics: KnownMetrics,
        limits: RequestLimits,
        resume_wait_s: float,
        tracing: Tracing,
        *,
        share_prefix_cache: bool = False,
    ) -> None:
        """`resume_wait_s`: how long a request whose replica was lost waits for another one.

        `share_prefix_cache`: share cached prefixes among bearer tokens.
        """
        self._resume_wait_s, self._tracing = resume_wait_s, tracing
        self._share_prefix_cache = share_prefix_cache
        self.encoder: PromptEncoder | None = None
        self.model_name = ""
        self.draining = False
        self._admission = admission
        self._fleet = fleet
        self._metrics, self._known_metrics = metrics, known_metrics
        self._limits = limits
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prepare")
        self._streams: set[RequestStream] = set()
        self._change = asyncio.Event()  # set at the next change, then replaced by a new event
        metrics.live_requests.set_function(lambda: admission.live_requests)
        metrics.queued_requests.set_function(lambda: admission.queued_requests)
        metrics.queued_tokens.set_function(lambda: admission.queued_tokens)
        metrics.ready_replicas.set_function(lambda: fleet.ready)

    @property
    def live_requests(self) -> int:
        return self._admission.live_requests

    @property
    def contended(self) -> bool:
        """Whether requests wait for places, or were refused a moment ago."""
        return self._admission.contended

    def note_change(self) -> None:
        """Call it when the result of `ready` may have changed."""
        self._change.set()
        self._change = asyncio.Event()

    def fail_all(self, message: str) -> None:
        """Ends every live request with an error event."""
        self._fleet.stop_waiting()
        for stream in self._streams:
            stream.fail(message, resumable=True)

    @contextlib.contextmanager
    def recorded(self, name: str, parent: TraceContext | None) -> Iterator[CallRecord]:
        """The record of a call. It is written to the log, the metrics and the span when the call ends.

        `name`: the span's name. `parent`: the span's parent.
        """
        record = CallRecord(self._tracing.begin(name, parent))
        try:
            yield record
        except REFUSALS as error:
            record.status = status_code(error).name.lower()
            if isinstance(error, OverloadedError):
                self._metrics.refused_requests.labels(cause=error.cause).inc()
            raise
        except SlowReaderError:
            record.status = "slow_reader"
            raise
        except asyncio.CancelledError:
            record.status = "replaced" if record.replaced else record.cancelled_as()
            raise
        except GeneratorExit:  # the reader of the events was cancelled in another await, such as a write, or failed
            if (task := asyncio.current_task()) is not None and task.cancelling():
                record.status = record.cancelled_as()
            raise
        finally:
            record.end(self._metrics, self._known_metrics, self.model_name)

    async def events(
        self, message: inference_pb2.GenerateRequest, record: CallRecord, deadline_s: float | None = None
    ) -> AsyncGenerator[Event]:
        """The events of a request, Accepted first. Raises one of REFUSALS before that. Closing the iterator cancels it.

        `deadline_s`: how long the client waits; None: without limit.
        """
        began = time.monotonic()
        encoder, replica = await self.wait_until_ready(deadline_s)
        record.request_id = message.request_id or secrets.token_hex(16)
        with self._admission.enter(
            record.request_id,
            caller=record.caller,
            resumed=message.HasField("resume"),
            outputs=message.num_sequences,
            deadline_s=None if deadline_s is None else deadline_s - (time.monotonic() - began),
        ) as ticket:
            ticket.replace = functools.partial(record.end_early, asyncio.current_task())
            self._metrics.resumed.inc(message.HasField("resume"))
            run = self._inline if is_small(message) else self.in_thread
            await run(self._limits.check, message)
            record.call = await run(call_from_wire, message)
            prepared = await run(prepare, record.call, encoder, self._limits, replica.info, self._salt(record.caller))
            stream = await self._open(prepared, encoder, ticket, record.context)
            ticket.wait_for_places(stream.take_turn)
            if stream.may_start:
                stream.start(stream.replica)
            accepted = stream.accepted()
            record.stream = stream
            logs.event(log, logging.INFO, "request accepted", **record.names, **record.place)
            self._streams.add(stream)
            try:
                yield accepted
                async with contextlib.aclosing(self._outputs(stream, ticket)) as outputs:
                    async for event in outputs:
                        yield event
            finally:
                self._streams.discard(stream)
                stream.close()
        record.status = "error" if stream.failed else "ok"

    def ready(self, *, is_work: bool = True) -> tuple[PromptEncoder, ReplicaConnection]:
        """The encoder and any ready replica, for checking a request. Raises UnavailableError if no replica is ready.

        `is_work`: count this as load, so that the autoscaler starts a replica if there is none.
        """
        if self.draining:
            raise UnavailableError("the gateway is draining: send the request to another gateway")
        try:
            replica = self._fleet.choose()
        except UnavailableError:
            if is_work:
                self._admission.note_unserved()
            raise
        if self.encoder is None:
            raise UnavailableError("the gateway does not know the model yet: try again later")
        return self.encoder, replica

    async def wait_until_ready(self, deadline_s: float | None = None) -> tuple[PromptEncoder, ReplicaConnection]:
        """As `ready`, but waits for a replica, up to the maximum queue wait and the client's deadline."""
        loop, most_s = asyncio.get_running_loop(), self._admission.max_queue_wait_s
        until = loop.time() + (most_s if deadline_s is None else min(most_s, deadline_s))
        while True:
            change = self._change
            try:
                return self.ready()
            except UnavailableError:
                if self.draining or self._fleet.draining or loop.time() >= until:
                    raise
            with self._admission.unserved(), contextlib.suppress(TimeoutError):
                await asyncio.wait_for(change.wait(), until - loop.time())

    def _salt(self, caller: str) -> str:
        """The prefix cache salt of a caller. Response times reveal cached prompts, so callers do not share them."""
        return "" if self._share_prefix_cache else caller

    async def _inline(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs the function in a thread, to not block other streams."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _open(
        self, prepared: PreparedRequest, encoder: PromptEncoder, ticket: Ticket, trace: TraceContext
    ) -> RequestStream:
        """Chooses a replica for the checked request, and queues it."""
        call, token_ids = prepared.call, prepared.token_ids
        ticket.queue(len(token_ids))
        await encoder.check_grammar(prepared.params, tools_in(call))
        replica = self._fleet.choose(
            len(token_ids), prepared.prefix, call.resume.fingerprint if call.resume is not None else None
        )
        if replica.info != prepared.info:
            prepared.check(replica.info, has_tokenizer=encoder.tokenizer is not None)
        request = Request(
            request_id=ticket.request_id,
            prompt_token_ids=token_ids,
            params=prepared.params,
            seed=_seed(call),
            resumed=outputs_to_continue(call.resume) if call.resume is not None else (),
            trace=trace,
            cache_salt=prepared.cache_salt,
        )
        resumed = sum(len(output.token_ids) for output in request.resumed)
        run = self._inline if resumed <= _FEW_TOKENS else self.in_thread
        prefix, tokenizer = prepared.prefix, encoder.tokenizer
        return await run(RequestStream, call, request, prefix, replica, tokenizer, ticket.release_places)

    async def _start(self, stream: RequestStream) -> None:
        """Submits the request to the best replica once it has its places. The stream fails if there is none."""
        while not stream.started and await stream.wait_for_turn():
            try:
                replica = await self._fleet.successor(
                    None, stream.fingerprint, stream.length, stream.prefix, self._resume_wait_s
                )
                with contextlib.suppress(EngineStoppedError):  # just ended: try another
                    stream.start(replica)
            except UnavailableError as error:
                stream.fail(str(error), resumable=True)

    async def _outputs(self, stream: RequestStream, ticket: Ticket) -> AsyncGenerator[Event]:
        await self._start(stream)
        while not stream.finished:
            events = await stream.next_events()
            if stream.first_token_at is not None:
                ticket.started()
            for event in events:
                yield event
            while stream.lost:
                await self._move(stream)

    async def _move(self, stream: RequestStream) -> None:
        """Moves the request to a replica with the same fingerprint. The stream fails if there is none."""
        origin, fingerprint = stream.replica.id, stream.fingerprint
        while stream.lost:
            try:
                if stream.crashes >= MOST_CRASHES:
                    self._metrics.quarantined.inc()
                    lost = f"{MOST_CRASHES} replicas in a row were lost while computing its next token"
                    raise UnavailableError(f"{lost}: it is not retried")
                if stream.moves_without_progress >= MOST_MOVES:
                    raise UnavailableError(f"it was moved {MOST_MOVES} times without a new token")
                with self._metrics.successor_waits.track_inprogress():
                    replica = await self._fleet.successor(
                        stream.connection, fingerprint, stream.length, stream.prefix, self._resume_wait_s
                    )
                with contextlib.suppress(EngineStoppedError):  # it has just ended: choose another
                    stream.move_to(replica)
                    self._metrics.moves.inc()
                    _log_move(stream, origin)
            except UnavailableError as error:
                if stream.lost:  # unless `fail_all` has ended it meanwhile
                    stream.fail(f"{await stream.loss_reason()}; {error}")


def _log_move(stream: RequestStream, origin: ReplicaId) -> None:
    request = stream.request
    fields: dict[str, object] = {"request_id": request.request_id, "trace_id": request.trace_id}
    fields |= {"from": origin, "to": stream.replica.id, "tokens": stream.usage.completion_tokens}
    logs.event(log, logging.WARNING, "request moved", **fields)


def _seed(call: GenerateCall) -> int:
    if call.resume is not None:
        return call.resume.seed
    return call.params.seed if call.params.seed is not None else secrets.randbits(63)
