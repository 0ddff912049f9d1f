"""InferenceService: one Generate call from its arrival to its end. What is decided elsewhere is put in order here."""

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from outrider.cluster.errors import DuplicateRequestError, UnavailableError
from outrider.cluster.gateway import wire
from outrider.cluster.gateway.admission import Admission, Ticket
from outrider.cluster.gateway.call_record import CallRecord
from outrider.cluster.gateway.fleet import Fleet
from outrider.cluster.gateway.health import INFERENCE
from outrider.cluster.gateway.limits import RequestLimits
from outrider.cluster.gateway.preparation import Prepared, is_small, prepare
from outrider.cluster.gateway.prompts import PromptEncoder
from outrider.cluster.gateway.replica import Replica
from outrider.cluster.gateway.resumption import to_say_again
from outrider.cluster.gateway.router import ReplicaId
from outrider.cluster.gateway.stream import RequestStream
from outrider.cluster.gateway.writer import EventWriter, SlowReaderError, cancelled_if_over
from outrider.cluster.generation import GenerateCall
from outrider.cluster.metrics import GatewayMetrics
from outrider.proto import inference_pb2, inference_pb2_grpc
from outrider.workers import logs
from outrider.workers.tracing import Tracing
from outrider.workers.types.errors import EngineStoppedError, OverloadedError
from outrider.workers.types.request import Request
from outrider.workers.types.trace_context import TraceContext

log = logging.getLogger("outrider.gateway.service")

METHOD = f"{INFERENCE}/Generate"
DEADLINE_SLACK_S = 0.05  # the client's clock ran first: at its deadline it cancels, and ours may not have come yet
_THREADS = 4  # that prepare large requests
T = TypeVar("T")
MOST_CRASHES = 2  # replicas lost in a row while they computed a request's next token: then it is what breaks them
MOST_MOVES = 16  # in a row without a token, wherever the request waited

GenerateContext = grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]

_REFUSALS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (DuplicateRequestError, grpc.StatusCode.ALREADY_EXISTS),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (EngineStoppedError, grpc.StatusCode.UNAVAILABLE),
    (ValueError, grpc.StatusCode.INVALID_ARGUMENT),
)


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """One event loop. `encoder` comes once the model is known; `draining` refuses what is new."""

    def __init__(
        self,
        admission: Admission,
        fleet: Fleet,
        metrics: GatewayMetrics,
        limits: RequestLimits,
        resume_wait_s: float,
        write_timeout_s: float,
        tracing: Tracing,
        *,
        share_prefix_cache: bool = False,
    ) -> None:
        """`resume_wait_s`: how long a request whose replica was lost waits for another; `write_timeout_s`: how long a
        client may read nothing of what it is sent; `share_prefix_cache`: among tokens."""
        self._resume_wait_s, self._write_timeout_s, self._tracing = resume_wait_s, write_timeout_s, tracing
        self._share_prefix_cache = share_prefix_cache
        self.encoder: PromptEncoder | None = None
        self.model_name = ""
        self.draining = False
        self._admission = admission
        self._fleet = fleet
        self._metrics = metrics
        self._limits = limits
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prepare")
        self._streams: set[RequestStream] = set()
        self._suspects = asyncio.Semaphore(1)  # that may be on a replica at once
        metrics.live_requests.set_function(lambda: admission.live_requests)
        metrics.queued_requests.set_function(lambda: admission.queued_requests)
        metrics.queued_tokens.set_function(lambda: admission.queued_tokens)
        metrics.ready_replicas.set_function(lambda: fleet.ready)

    @property
    def live_requests(self) -> int:
        return self._admission.live_requests

    def fail_all(self, message: str) -> None:
        """Every live request gets an error event, its last."""
        self._fleet.stop_waiting()
        for stream in self._streams:
            stream.fail(message, resumable=True)

    async def Generate(  # noqa: N802
        self, request: inference_pb2.GenerateRequest, context: GenerateContext
    ) -> None:
        record = CallRecord(self._tracing.begin(METHOD, TraceContext.of(context.invocation_metadata() or ())))
        try:
            with cancelled_if_over():
                await context.send_initial_metadata(record.context.metadata)
            await self._generate(request, context, record)
        except (ValueError, OverloadedError, DuplicateRequestError, UnavailableError, EngineStoppedError) as error:
            if isinstance(error, OverloadedError):
                self._metrics.refused_requests.labels(cause=error.cause).inc()
            await _refuse(context, error, record)
        except SlowReaderError as error:
            record.status = "slow_reader"
            await error.make_room()
            await context.abort(grpc.StatusCode.ABORTED, str(error))
        except asyncio.CancelledError:
            left = context.time_remaining()  # None without a deadline
            record.status = "deadline_exceeded" if left is not None and left <= DEADLINE_SLACK_S else "cancelled"
            if record.replaced:
                record.status = "replaced"
                await context.abort(grpc.StatusCode.ABORTED, "the request was resumed by another call")
            raise
        finally:
            record.end(self._metrics, self.model_name)

    async def _generate(
        self, message: inference_pb2.GenerateRequest, context: GenerateContext, record: CallRecord
    ) -> None:
        encoder, replica = self._ready()
        record.request_id = message.request_id or secrets.token_hex(16)
        with self._admission.enter(
            record.request_id,
            caller=record.caller,
            resumed=message.HasField("resume"),
            outputs=message.num_sequences,
            deadline_s=context.time_remaining(),
        ) as ticket:
            ticket.replace = functools.partial(record.end_early, asyncio.current_task())
            self._metrics.resumed.inc(message.HasField("resume"))
            run = self._inline if is_small(message) else self._in_thread
            await run(self._limits.check, message)
            record.call = await run(wire.call_from_wire, message)
            prepared = await run(prepare, record.call, encoder, self._limits, replica.info, self._salt(record.caller))
            stream = await self._open(prepared, encoder, ticket, record.context)
            ticket.ask_for_turn(stream.take_turn)
            if stream.may_start:
                stream.start(stream.replica)
            accepted = stream.accepted()
            record.stream = stream
            logs.event(log, logging.INFO, "request accepted", **record.names, **record.place)
            self._streams.add(stream)
            try:
                writer = EventWriter(context, self._write_timeout_s, lambda: self._admission.wanted)
                await writer.write(accepted)
                async with writer.beating(prepared.call.heartbeat_s):
                    await self._relay(stream, ticket, writer)
            finally:
                self._streams.discard(stream)
                stream.close()
        record.status = "error" if stream.failed else "ok"

    def _ready(self) -> tuple[PromptEncoder, Replica]:
        """What a request is checked by: any replica will do."""
        if self.draining:
            raise UnavailableError("the gateway is draining: send the request to another")
        replica = self._fleet.choose()
        if self.encoder is None:
            raise UnavailableError("the gateway does not know the model yet: try again later")
        return self.encoder, replica

    def _salt(self, caller: str) -> str:
        """How long an answer takes tells whether its prompt is cached: that is for its own token to know."""
        return "" if self._share_prefix_cache else caller

    async def _inline(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Other streams go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _open(
        self, prepared: Prepared, encoder: PromptEncoder, ticket: Ticket, trace: TraceContext
    ) -> RequestStream:
        """A checked request with its place in the queue, and the replica it goes to."""
        call, token_ids = prepared.call, prepared.token_ids
        ticket.queue(len(token_ids))
        await encoder.check_grammar(prepared.params)
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
            resumed=to_say_again(call.resume) if call.resume is not None else (),
            trace=trace,
            cache_salt=prepared.cache_salt,
        )
        return RequestStream(call, request, prepared.prefix, replica, encoder.tokenizer, ticket.end_turn)

    async def _start(self, stream: RequestStream) -> None:
        """When it is its turn, on whatever replica is best then; without one the stream fails."""
        while not stream.started and await stream.wait_for_turn():
            try:
                replica = await self._fleet.successor(
                    None, stream.fingerprint, stream.length, stream.prefix, self._resume_wait_s
                )
                with contextlib.suppress(EngineStoppedError):  # gone in this moment: then another
                    stream.start(replica)
            except UnavailableError as error:
                stream.fail(str(error), resumable=True)

    async def _relay(self, stream: RequestStream, ticket: Ticket, writer: EventWriter) -> None:
        await self._start(stream)
        while not stream.finished:
            events = await stream.next_events()
            if stream.first_token_at is not None:
                ticket.started()
            for event in events:
                await writer.write(event)
            while stream.lost:
                await (self._move_suspect(stream, writer) if stream.crashes else self._move(stream))

    async def _move_suspect(self, stream: RequestStream, writer: EventWriter) -> None:
        """One that may have broken its replica goes to another alone among such, until it has a token or breaks that
        too: so those that were only beside it are not taken for it."""
        async with self._suspects:
            await self._move(stream)
            while stream.crashes and not stream.lost and not stream.finished:
                for event in await stream.next_events():
                    await writer.write(event)

    async def _move(self, stream: RequestStream) -> None:
        """To a replica that goes on with the same text; without one the stream fails, and says why."""
        origin, fingerprint = stream.replica.id, stream.fingerprint
        while stream.lost:
            try:
                if stream.crashes >= MOST_CRASHES:
                    self._metrics.quarantined.inc()
                    lost = f"{MOST_CRASHES} replicas in a row were lost as they computed its next token"
                    raise UnavailableError(f"{lost}: it is not tried again")
                if stream.moves_without_progress >= MOST_MOVES:
                    raise UnavailableError(f"it was moved {MOST_MOVES} times without a token")
                with self._metrics.successor_waits.track_inprogress():
                    replica = await self._fleet.successor(
                        stream.connection, fingerprint, stream.length, stream.prefix, self._resume_wait_s
                    )
                with contextlib.suppress(EngineStoppedError):  # gone in this moment: then another
                    stream.move_to(replica)
                    self._metrics.moves.inc()
                    _log_move(stream, origin)
            except UnavailableError as error:
                if stream.lost:  # and has not failed meanwhile, as all do when the gateway leaves
                    stream.fail(f"{await stream.why_lost()}; {error}")


def _log_move(stream: RequestStream, origin: ReplicaId) -> None:
    request = stream.request
    fields: dict[str, object] = {"request_id": request.request_id, "trace_id": request.trace_id}
    fields |= {"from": origin, "to": stream.replica.id, "tokens": stream.usage.completion_tokens}
    logs.event(log, logging.WARNING, "request moved", **fields)


def _seed(call: GenerateCall) -> int:
    if call.resume is not None:
        return call.resume.seed
    return call.params.seed if call.params.seed is not None else secrets.randbits(63)


async def _refuse(context: GenerateContext, error: Exception, record: CallRecord) -> NoReturn:
    """Before the first event only: what fails later is an event."""
    if isinstance(error, OverloadedError):
        record.status = "resource_exhausted"
        await context.abort_with_status(rpc_status.to_status(_overload(error)))
    code = next(code for kind, code in _REFUSALS if isinstance(error, kind))
    record.status = code.name.lower()
    await context.abort(code, str(error))


def _overload(error: OverloadedError) -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=str(error))
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(1000 * error.retry_after_s))
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status
