"""The leader's gRPC service: gateways attach, submit requests, and receive the chunks of each round as a message."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc

from outrider.proto import worker_pb2, worker_pb2_grpc
from outrider.workers.engine.handle import EngineHandle
from outrider.workers.serving.rpc import messages as wire
from outrider.workers.serving.rpc.cluster_key import interceptors
from outrider.workers.types.errors import EngineStoppedError, OutriderError
from outrider.workers.types.requests.request import SequenceChunk, in_parts

AttachContext = grpc.aio.ServicerContext[worker_pb2.AttachRequest, worker_pb2.AttachResponse]
EngineContext = grpc.aio.ServicerContext[worker_pb2.GetEngineRequest, worker_pb2.GetEngineResponse]
SwapContext = grpc.aio.ServicerContext[worker_pb2.SwapDrafterRequest, worker_pb2.SwapDrafterResponse]

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server on it
    ("grpc.http2.min_ping_interval_without_data_ms", 2_500),  # gateways ping through long prefills
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 64 * 2**20),
)
_STOP_GRACE_S = 0.3  # time to send the last chunks
_WEIGHT = 1 / 64  # of a new value in the moving mean; small, since requests that began together may end together
ANNOUNCED_S = 0.05  # the longest that a gateway which does not read delays a round


class _Attachment:
    """One stream of one gateway. Its number prefixes request ids at the engine, so ids of streams do not collide."""

    def __init__(self, engine: EngineHandle, number: int, others: "set[_Attachment]") -> None:
        """`others`: all open attachments, this one included."""
        self._engine, self._others = engine, others
        self._prefix = f"{number}:"
        self._loop = asyncio.get_running_loop()
        self._rounds: asyncio.Queue[list[SequenceChunk]] = asyncio.Queue()
        self._live: dict[str, int] = {}  # the engine's request id -> outputs that have not finished
        self.ended_a_round = 0.0  # moving mean of outputs that end in a round
        self._announced: list[threading.Event] = []  # each is set once the chunks delivered before it are sent
        self._closed = False

    def deliver(self, chunks: list[SequenceChunk]) -> None:
        """Called from the engine's thread. If requests begin, waits until the chunk that reports it is sent.

        If the round crashes this process, the gateway then knows which requests were in it.
        """
        announced = threading.Event()
        begins = chunks[0].began
        with contextlib.suppress(RuntimeError):  # the event loop has closed
            self._loop.call_soon_threadsafe(self._put, chunks, announced if begins else None)
            if begins:
                announced.wait(ANNOUNCED_S)

    def _put(self, chunks: list[SequenceChunk], announced: threading.Event | None) -> None:
        self._rounds.put_nowait(chunks)
        if announced is not None:
            self._announced.append(announced)
            if self._closed:
                announced.set()

    async def send(self, write: Callable[[worker_pb2.AttachResponse], Awaitable[None]]) -> None:
        """Sends the number of places, then every round's chunks in one or several messages, until it is cancelled."""
        await write(wire.chunks_to_wire((), self.places))
        while True:
            messages = await self.next_messages()
            announced, self._announced = self._announced, []
            for message in messages:
                await write(message)
            for one in announced:
                one.set()

    async def receive(self, messages: AsyncIterator[worker_pb2.AttachRequest]) -> None:
        """Handles submissions and cancellations until the gateway closes its side of the stream."""
        async for message in messages:
            if message.HasField("submit"):
                self._submit(message.submit)
            elif message.HasField("cancel"):
                self._engine.cancel(self._prefix + message.cancel.request_id, wire.cancel_from_wire(message.cancel))

    def _submit(self, submit: worker_pb2.Submit) -> None:
        request_id = self._prefix + submit.request_id
        try:
            request = wire.submit_from_wire(submit, request_id)
            self._live[request_id] = len(request.outputs)
            self._engine.submit(request, self.deliver)
        except (ValueError, TypeError, EngineStoppedError) as error:
            lost = isinstance(error, EngineStoppedError)
            self._rounds.put_nowait([SequenceChunk(request_id=request_id, error=str(error), engine_lost=lost)])

    @property
    def live_outputs(self) -> int:
        return sum(self._live.values())

    @property
    def places(self) -> int:
        """Outputs that this stream may have in progress: what the other streams leave, and at least an equal share.

        The total is max_num_seqs plus the mean number that ends per round, so that these are replaced without waiting
        for the gateway. More would wait at the leader, whose queue is not fair among callers.
        """
        places = self._engine.info.max_num_seqs + round(sum(one.ended_a_round for one in self._others))
        elsewhere = sum(one.live_outputs for one in self._others if one is not self)
        return max(places - elsewhere, -(-places // max(1, len(self._others))))

    async def next_messages(self) -> Iterator[worker_pb2.AttachResponse]:
        """Waits for the next round's chunks. If the gateway is slow, later rounds' chunks are added.

        Usually one message. Long prompt log-probabilities are split over several, so that each is quick to serialize.
        """
        chunks = await self._rounds.get()
        while not self._rounds.empty():
            chunks = chunks + self._rounds.get_nowait()
        for chunk in chunks:
            self._count(chunk)
        ended = sum(chunk.finish_reason is not None for chunk in chunks)
        self.ended_a_round += _WEIGHT * (ended - self.ended_a_round)
        return self._messages(chunks)

    def _messages(self, chunks: list[SequenceChunk]) -> Iterator[worker_pb2.AttachResponse]:
        last = []
        for chunk in chunks:
            *parts, rest = in_parts(chunk)
            request_id = chunk.request_id.removeprefix(self._prefix)
            for part in parts:
                yield wire.chunks_to_wire([(request_id, part)], self.places)
            last.append((request_id, rest))
        yield wire.chunks_to_wire(last, self.places)

    def _count(self, chunk: SequenceChunk) -> None:
        left = self._live.get(chunk.request_id, 0) - (chunk.finish_reason is not None)
        if chunk.error or left <= 0:
            self._live.pop(chunk.request_id, None)
        else:
            self._live[chunk.request_id] = left

    def close(self) -> None:
        """Cancels this stream's requests at the engine, and releases the engine's thread if it waits in `deliver`."""
        self._closed = True
        for one in self._announced:
            one.set()
        for request_id in self._live:
            self._engine.cancel(request_id)


class EngineServicer(worker_pb2_grpc.EngineServiceServicer):
    """Implements EngineService for a running engine."""

    def __init__(self, engine: EngineHandle) -> None:
        self._engine = engine
        self._numbers = itertools.count()
        self._attachments: set[_Attachment] = set()

    async def GetEngine(  # noqa: N802
        self, request: worker_pb2.GetEngineRequest, context: EngineContext
    ) -> worker_pb2.GetEngineResponse:
        return wire.engine_to_wire(self._engine.info, self._engine.counters)

    async def SwapDrafter(  # noqa: N802
        self, request: worker_pb2.SwapDrafterRequest, context: SwapContext
    ) -> worker_pb2.SwapDrafterResponse:
        try:
            await asyncio.to_thread(self._engine.swap_drafter, request.checkpoint)
        except OutriderError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return worker_pb2.SwapDrafterResponse()

    async def Attach(  # noqa: N802
        self, request_iterator: AsyncIterator[worker_pb2.AttachRequest], context: AttachContext
    ) -> None:
        attachment = _Attachment(self._engine, next(self._numbers), self._attachments)
        self._attachments.add(attachment)
        receiver = asyncio.create_task(attachment.receive(request_iterator))
        sender = asyncio.create_task(attachment.send(context.write))
        try:
            await asyncio.wait((receiver, sender), return_when=asyncio.FIRST_COMPLETED)
        finally:
            receiver.cancel()
            sender.cancel()
            self._attachments.discard(attachment)
            attachment.close()
            await asyncio.gather(receiver, sender, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderEndpoint:
    """The address of a leader's service, and its cluster key."""

    host: str
    ports: tuple[int, int] = (0, 0)  # first and last; 0: any
    key: str = field(default="", repr=False)

    def serve(self, engine: EngineHandle) -> "EngineServer":
        """A server for the engine, not started yet."""
        return EngineServer(engine, self.host, self.ports[0], last_port=self.ports[1], key=self.key)


class EngineServer:
    """Serves an engine from a thread with an event loop of its own, beside the engine's thread."""

    def __init__(
        self, engine: EngineHandle, host: str = "127.0.0.1", port: int = 0, *, last_port: int = 0, key: str = ""
    ) -> None:
        """`port` 0 takes any free port; with `last_port`, the first free port from `port` to `last_port`.

        `key` is the cluster key (cluster_key.py).
        """
        self._engine, self._host, self._key = engine, host, key
        self._ports = range(port, max(port, last_port) + 1)
        self._bound: Future[int] = Future()
        self._stopping: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name="engine-server", daemon=True)

    def start(self) -> int:
        """Starts the server and returns its port. OutriderError if it cannot listen."""
        self._thread.start()
        return self._bound.result()

    def stop(self) -> None:
        """Ends every stream and cancels its requests."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: stopped before
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._bound.done():
                raise
            self._bound.set_exception(error)  # `start` waits for it

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=_OPTIONS, interceptors=interceptors(self._key))
        worker_pb2_grpc.add_EngineServiceServicer_to_server(EngineServicer(self._engine), server)
        port = self._bind(server)
        await server.start()
        self._bound.set_result(port)
        await self._stopping.wait()
        await server.stop(_STOP_GRACE_S)

    def _bind(self, server: grpc.aio.Server) -> int:
        """Binds a port and returns it; OutriderError if all are in use."""
        reason: Exception | None = None
        for port in self._ports:
            try:
                return int(server.add_insecure_port(f"{self._host}:{port}"))
            except RuntimeError as error:
                reason = error
        ports = f"{self._ports[0]}" if len(self._ports) == 1 else f"{self._ports[0]}..{self._ports[-1]}"
        raise OutriderError(f"the leader cannot listen on {self._host}:{ports}: {reason}")
