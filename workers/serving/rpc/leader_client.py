"""The client of a leader's gRPC service: sends many requests on one stream, and detects when the stream breaks.

LeaderClient runs on an asyncio event loop (gateways). RemoteEngine wraps it as an EngineHandle for synchronous code
(LLM).
"""

import asyncio
import contextlib
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import grpc

from outrider.proto import worker_pb2, worker_pb2_grpc
from outrider.workers.engine.handle import Deliver, EngineInfo
from outrider.workers.serving.rpc import messages as wire
from outrider.workers.serving.rpc.cluster_key import key_metadata
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.errors import EngineStoppedError, OutriderError
from outrider.workers.types.requests.request import Request, SequenceChunk

_OPTIONS = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),  # a restarted leader may have the same address
    ("grpc.enable_http_proxy", 0),
)
_CALL_TIMEOUT_S = 10.0
_SWAP_TIMEOUT_S = 600.0  # a large module takes a while to read
_LAST_TASKS_S = 1.0

AttachCall = grpc.aio.StreamStreamCall[worker_pb2.AttachRequest, worker_pb2.AttachResponse]


@dataclass(slots=True)
class _LiveRequest:
    """A request that has not ended."""

    request_id: str
    unfinished: int
    deliver: Deliver


class LeaderClient:
    """One stream to one leader. Call its methods on the event loop only; it calls `deliver` there, once per message."""

    def __init__(self, address: str, key: str = "", on_places: Callable[[], None] = lambda: None) -> None:
        """`key` is the cluster key (cluster_key.py); `on_places` is called when `places` changes."""
        self.address = address
        self.places = 0  # how many outputs the leader accepts from this stream at once
        self._on_places = on_places
        self._metadata = key_metadata(key)
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = worker_pb2_grpc.EngineServiceStub(self._channel)
        self._numbers = itertools.count()
        self._outgoing: asyncio.Queue[worker_pb2.AttachRequest] = asyncio.Queue()
        self._live: dict[str, _LiveRequest] = {}  # by wire id, which is never reused
        self._wire_ids: dict[str, str] = {}  # by request id
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._info: EngineInfo | None = None
        self.broken = asyncio.Event()
        self.engine_ended = False  # the leader reported that its engine has stopped

    async def connect(self, timeout_s: float = _CALL_TIMEOUT_S) -> EngineInfo:
        """Opens the stream. EngineStoppedError if the leader does not answer in time."""
        self._info, _ = await self.ask(timeout_s)
        call = self._stub.Attach(metadata=self._metadata)
        self._tasks = (asyncio.create_task(self._write(call)), asyncio.create_task(self._read(call)))
        return self._info

    async def ask(self, timeout_s: float = _CALL_TIMEOUT_S) -> tuple[EngineInfo, EngineCounters]:
        """The engine's info and counters. EngineStoppedError if the leader does not answer in time."""
        try:
            response = await self._stub.GetEngine(
                worker_pb2.GetEngineRequest(), timeout=timeout_s, wait_for_ready=True, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise EngineStoppedError(f"the leader at {self.address} does not answer: {error.details()}") from error
        return wire.engine_from_wire(response)

    async def swap_drafter(self, checkpoint: str) -> None:
        """As EngineHandle.swap_drafter."""
        request = worker_pb2.SwapDrafterRequest(checkpoint=checkpoint)
        try:
            await self._stub.SwapDrafter(request, timeout=_SWAP_TIMEOUT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise OutriderError(error.details()) from error
            raise EngineStoppedError(f"the leader at {self.address} does not answer: {error.details()}") from error

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineStoppedError(f"the leader at {self.address} is not connected")
        return self._info

    @property
    def live(self) -> int:
        """Requests that the leader has not ended yet."""
        return len(self._live)

    def submit(self, request: Request, deliver: Deliver) -> None:
        """As EngineHandle.submit. If the stream breaks, every live request gets one error chunk."""
        if self.broken.is_set() or not self._tasks:
            raise EngineStoppedError(self._closed_message())
        wire_id = f"{request.request_id}/{next(self._numbers)}"
        self._live[wire_id] = _LiveRequest(request.request_id, len(request.outputs), deliver)
        self._wire_ids[request.request_id] = wire_id
        self._outgoing.put_nowait(wire.submit_to_wire(request, wire_id))

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """As EngineHandle.cancel."""
        wire_id = self._wire_ids.get(request_id)
        if wire_id is not None:
            self._outgoing.put_nowait(wire.cancel_to_wire(wire_id, index))

    async def close(self) -> None:
        """Closes the stream; the leader then cancels its requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def _write(self, call: AttachCall) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # `_read` handles a broken stream
            while True:
                await call.write(await self._outgoing.get())

    async def _read(self, call: AttachCall) -> None:
        try:
            async for response in call:
                self._dispatch(response)
        except grpc.aio.AioRpcError:
            pass
        finally:
            call.cancel()
            self._break()

    def _dispatch(self, response: worker_pb2.AttachResponse) -> None:
        batches: defaultdict[Deliver, list[SequenceChunk]] = defaultdict(list)
        for message in response.chunks:
            live = self._live.get(message.request_id)
            if live is not None:
                chunk = wire.chunk_from_wire(message, live.request_id)
                batches[live.deliver].append(chunk)
                self._count(message.request_id, live, chunk)
                self.engine_ended |= chunk.engine_lost
        for deliver, chunks in batches.items():
            deliver(chunks)
        if response.places != self.places:
            self.places = response.places
            self._on_places()

    def _count(self, wire_id: str, live: _LiveRequest, chunk: SequenceChunk) -> None:
        live.unfinished -= chunk.finish_reason is not None
        if chunk.error or live.unfinished <= 0:
            self._forget(wire_id, live)

    def _forget(self, wire_id: str, live: _LiveRequest) -> None:
        del self._live[wire_id]
        if self._wire_ids.get(live.request_id) == wire_id:
            del self._wire_ids[live.request_id]

    def _break(self) -> None:
        self.broken.set()
        for wire_id, live in list(self._live.items()):
            self._forget(wire_id, live)
            live.deliver([SequenceChunk(request_id=live.request_id, error=self._closed_message(), engine_lost=True)])

    def _closed_message(self) -> str:
        return f"the replica's leader (rank 0, {self.address}) closed its connection"


class RemoteEngine:
    """An EngineHandle for a leader in another process. `deliver` is called from this object's own thread."""

    def __init__(self, address: str, key: str = "") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote-engine", daemon=True)
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._open(address, key), self._loop).result()

    @classmethod
    def connect(cls, address: str, timeout_s: float = _CALL_TIMEOUT_S, key: str = "") -> Self:
        """Raises EngineStoppedError if the leader does not answer in time. `key` is the cluster key."""
        engine = cls(address, key)
        try:
            asyncio.run_coroutine_threadsafe(engine._client.connect(timeout_s), engine._loop).result()
        except EngineStoppedError:
            engine.close()
            raise
        return engine

    @staticmethod
    async def _open(address: str, key: str) -> LeaderClient:
        return LeaderClient(address, key)

    @property
    def info(self) -> EngineInfo:
        return self._client.info

    @property
    def counters(self) -> EngineCounters:
        """Each read is a call to the leader. EngineStoppedError if it does not answer."""
        return asyncio.run_coroutine_threadsafe(self._client.ask(), self._loop).result()[1]

    def submit(self, request: Request, deliver: Deliver) -> None:
        """As EngineHandle.submit. If the leader is lost, `deliver` gets an error chunk."""
        if self._loop.is_closed():
            raise EngineStoppedError("the engine was closed")
        self._loop.call_soon_threadsafe(self._submit, request, deliver)

    def _submit(self, request: Request, deliver: Deliver) -> None:
        try:
            self._client.submit(request, deliver)
        except EngineStoppedError as error:
            deliver([SequenceChunk(request_id=request.request_id, error=str(error), engine_lost=True)])

    def cancel(self, request_id: str, index: int | None = None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._client.cancel, request_id, index)

    def swap_drafter(self, checkpoint: str) -> None:
        """As EngineHandle.swap_drafter."""
        if self._loop.is_closed():
            raise EngineStoppedError("the engine was closed")
        asyncio.run_coroutine_threadsafe(self._client.swap_drafter(checkpoint), self._loop).result()

    def close(self) -> None:
        """Ends the stream and the thread. Idempotent."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """Closes the stream, then waits briefly for gRPC's own tasks to end."""
        await self._client.close()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=_LAST_TASKS_S)
