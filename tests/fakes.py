"""The only doubles. FakeEngine stands in for an engine (same threads, same promises, no model); FakeController for the
controller's gRPC service; FixedPlans for the depth policy, as the scheduler reads it."""

import asyncio
import itertools
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import grpc

from outrider.cluster.api.controller_options import SERVER_OPTIONS
from outrider.proto import cluster_pb2, cluster_pb2_grpc
from outrider.workers.engine.handle import Deliver, EngineInfo
from outrider.workers.serving.rpc.cluster_key import interceptors
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.errors import EngineStoppedError, OutriderError
from outrider.workers.types.requests.request import FinishReason, OutputSoFar, Request, SequenceChunk, TokenLogprobs
from outrider.workers.types.rounds.draft_plan import DraftPlan
from outrider.workers.types.rounds.sequence import Sequence

EOS = 1
Script = Callable[[Request, int], Iterable[int]]


def counting(request: Request, index: int) -> Iterable[int]:
    """Never ends by itself: the prompt's last token, counted up within the printable part of a small vocabulary."""
    return (100 + (request.prompt_token_ids[-1] + index + step) % 100 for step in itertools.count())


class _FakeSequence:
    def __init__(self, request: Request, output: OutputSoFar, deliver: Deliver, tokens: Iterable[int]) -> None:
        self.request, self.index, self.deliver = request, output.index, deliver
        self.given = len(output.token_ids)
        self.tokens: Iterator[int] = itertools.islice(tokens, self.given, None)
        self.cancelled = False
        self.has_token = False  # here


class FakeEngine:
    """An EngineHandle that says what a script says, some tokens a round, from a thread of its own."""

    def __init__(
        self,
        script: Script = counting,
        *,
        per_round: Callable[[int], int] = lambda given: 1,
        round_s: float = 0.001,
        max_model_len: int = 256,
        vocab_size: int = 400,
        speculation: str = "auto",
        has_mtp: bool = True,
        fingerprint: str = "feedbeef",
        poison: int | None = None,
        max_num_seqs: int = 64,
    ) -> None:
        """With `poison` it says when requests begin, and fails with one whose prompt begins with this token.

        `per_round`: tokens of a sequence's next round, from how many it was given; above one they were drafts."""
        self.info = EngineInfo(
            fingerprint=fingerprint,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            dtype="float32",
            numerics="exact",
            speculation=speculation,
            has_mtp=has_mtp,
            max_num_seqs=max_num_seqs,
        )
        self.counters = EngineCounters()
        self.submitted: list[Request] = []
        self.swapped: list[str] = []
        self.largest_batch = 0
        self._script, self._per_round, self._round_s = script, per_round, round_s
        self._sequences: list[_FakeSequence] = []
        self._poison = poison
        self._begun: set[str] = set()
        self._failure = ""
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._stopped = threading.Event()
        self._running.set()
        self._thread = threading.Thread(target=self._loop, name="fake-engine", daemon=True)
        self._thread.start()

    @property
    def live(self) -> set[str]:
        with self._lock:
            return {one.request.request_id for one in self._sequences}

    @property
    def failed(self) -> bool:
        return bool(self._failure)

    @property
    def live_outputs(self) -> int:
        with self._lock:
            return len(self._sequences)

    def pause(self) -> None:
        """No more rounds until `go_on`."""
        self._running.clear()

    def stall_after(self, tokens: int) -> None:
        """No sequence gets further than that."""
        self._per_round = lambda given: 1 if given < tokens else 0

    def go_on(self) -> None:
        self._running.set()

    def submit(self, request: Request, deliver: Deliver) -> None:
        with self._lock:
            if self._failure or self._stopped.is_set():
                raise EngineStoppedError(self._failure or "the engine was stopped")
            assert request.request_id not in {one.request.request_id for one in self._sequences}
            self.submitted.append(request)
            self._sequences += [
                _FakeSequence(request, output, deliver, self._script(request, output.index))
                for output in request.outputs
            ]

    def cancel(self, request_id: str, index: int | None = None) -> None:
        with self._lock:
            for one in self._sequences:
                if one.request.request_id == request_id and index in (None, one.index):
                    one.cancelled = True

    def swap_drafter(self, checkpoint: str) -> None:
        if checkpoint == "misfit":
            raise OutriderError("misfit is of another shape than the model that runs")
        self.swapped.append(checkpoint)

    def fail(self, reason: str) -> None:
        """As when a rank is lost: every request hears why, and new ones are refused."""
        with self._lock:
            self._failure = reason
            self._deliver(
                [
                    (one, SequenceChunk(request_id=one.request.request_id, error=reason, engine_lost=True))
                    for one in self._sequences
                ]
            )
            self._sequences = []

    def close(self) -> None:
        self._stopped.set()
        self._running.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.wait(self._round_s):
            self._running.wait()
            with self._lock:
                poisoned = self._begin()
            if poisoned:
                self.fail("the engine failed: ValueError: poison")
            with self._lock:
                self._round()

    def _begin(self) -> bool:
        """As a leader does for an engine. Whether one of them is poison."""
        new = []
        for one in self._sequences if self._poison is not None else []:
            if one.request.request_id not in self._begun and not (one.request.suspect and self._tries_another()):
                new.append(one)
                self._begun.add(one.request.request_id)
                one.deliver([SequenceChunk(request_id=one.request.request_id, began=True)])
        return any(one.request.prompt_token_ids[0] == self._poison for one in new)

    def _tries_another(self) -> bool:
        return any(
            one.request.suspect and one.request.request_id in self._begun and not one.has_token
            for one in self._sequences
        )

    def _round(self) -> None:
        begun = [one for one in self._sequences if self._poison is None or one.request.request_id in self._begun]
        waiting = [one for one in self._sequences if one not in begun]
        chunks = [(one, self._advance(one)) for one in begun]
        if not chunks:
            return
        self.counters.rounds += 1
        self._sequences = waiting + [one for one, chunk in chunks if chunk.finish_reason is None]
        self.counters.running = len(self._sequences)
        self._deliver(chunks)

    def _deliver(self, chunks: list[tuple[_FakeSequence, SequenceChunk]]) -> None:
        batches: defaultdict[Deliver, list[SequenceChunk]] = defaultdict(list)
        for one, chunk in chunks:
            batches[one.deliver].append(chunk)
        for deliver, batch in batches.items():
            self.largest_batch = max(self.largest_batch, len(batch))
            deliver(batch)

    def _advance(self, one: _FakeSequence) -> SequenceChunk:
        if one.cancelled:
            return SequenceChunk(
                request_id=one.request.request_id, index=one.index, finish_reason=FinishReason.CANCELLED
            )
        first = one.given == 0
        token_ids, finish, stop_id = self._tokens(one, self._per_round(one.given))
        one.has_token |= bool(token_ids)
        asked = one.request.params.logprobs
        return SequenceChunk(
            request_id=one.request.request_id,
            index=one.index,
            token_ids=tuple(token_ids),
            logprobs=() if asked is None else tuple(_logprobs(token_id, asked) for token_id in token_ids),
            drafted=len(token_ids),
            accepted=max(0, len(token_ids) - 1),
            finish_reason=finish,
            stop_token_id=stop_id,
            cached_tokens=16 if first and len(one.request.prompt_token_ids) > 16 else 0,
            prompt_logprobs=_prompt_logprobs(one.request) if first and one.index == 0 else (),
        )

    def _tokens(self, one: _FakeSequence, count: int) -> tuple[list[int], FinishReason | None, int | None]:
        params, taken = one.request.params, list[int]()
        for token_id in itertools.islice(one.tokens, count):
            taken.append(token_id)
            one.given += 1
            ends = token_id in (params.stop_token_ids or ()) or (token_id == EOS and not params.ignore_eos)
            if ends and one.given > params.min_tokens:
                return taken, FinishReason.STOP, token_id
            length = len(one.request.prompt_token_ids) + one.given
            if one.given == params.max_tokens or length >= self.info.max_model_len:
                return taken, FinishReason.LENGTH, None
        return taken, None, None


def _prompt_logprobs(request: Request) -> tuple[TokenLogprobs, ...]:
    asked = request.params.prompt_logprobs
    return () if asked is None else tuple(_logprobs(token_id, asked) for token_id in request.prompt_token_ids[1:])


def _logprobs(token_id: int, count: int) -> TokenLogprobs:
    candidates = tuple(range(token_id, token_id + 1 + count))
    return TokenLogprobs(
        token_ids=candidates,
        logprobs=tuple(-0.5 * (place + 1) for place in range(1 + count)),
        ranks=tuple(range(1, 2 + count)),
    )


class FixedPlans:
    """A Planner: one depth for every sequence; the drafter follows all but those that it is told to ignore."""

    def __init__(self, depth: int = 0) -> None:
        self.plans: dict[int, DraftPlan] = {}
        self.together: list[int] = []  # how many would share a lane's rounds, as each admission said
        self._depth = depth
        self._ignored: set[int] = set()

    def admit(self, sequence: Sequence, together: int) -> None:
        self.together.append(together)
        self.plans[sequence.sequence_id] = self._plan(sequence.sequence_id)

    def forget(self, sequence_id: int) -> None:
        self.plans.pop(sequence_id, None)

    def set_depth(self, depth: int) -> None:
        self._depth = depth
        self._replan()

    def ignore(self, sequence_ids: set[int]) -> None:
        """These sequences, live or not yet, are not followed from now on; all others are."""
        self._ignored = sequence_ids
        self._replan()

    def toggle(self, sequence_id: int) -> None:
        self.ignore(self._ignored ^ {sequence_id})

    def _replan(self) -> None:
        self.plans.update({sequence_id: self._plan(sequence_id) for sequence_id in self.plans})

    def _plan(self, sequence_id: int) -> DraftPlan:
        followed = sequence_id not in self._ignored
        return DraftPlan(self._depth if followed else 0, follows=followed)


class FakeController(cluster_pb2_grpc.ControllerServiceServicer):
    """Tells gateways what a test tells it. May be stopped and started again, on the same port."""

    def __init__(self, model_path: str, key: str = "") -> None:
        self.model_path = model_path
        self._key = key
        self.port = 0
        self.watchers = 0
        self.waiting = cluster_pb2.ReportWaitingRequest()  # at the gateway that reported last
        self._table = cluster_pb2.WatchRoutesResponse(version=1)
        self._engine = cluster_pb2.EngineStatus()
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=interceptors(self._key))
        cluster_pb2_grpc.add_ControllerServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(grace=None)

    async def publish(self, *routes: tuple[str, int, str], draining: bool = False, pending: int = 0) -> None:
        """Replicas as name, generation, address; `pending` more are on their way."""
        wire = [cluster_pb2.Route(replica=name, generation=n, address=address) for name, n, address in routes]
        await self._change(cluster_pb2.WatchRoutesResponse(routes=wire, draining=draining, pending=pending))

    async def show(self, engine: cluster_pb2.EngineStatus) -> None:
        """Each replica's status from now on."""
        self._engine = engine
        await self._change(cluster_pb2.WatchRoutesResponse(routes=self._table.routes))

    async def end(self, name: str, generation: int, reason: str, pending: int = 0) -> None:
        routes = [route for route in self._table.routes if route.replica != name]
        ended = cluster_pb2.EndedReplica(replica=name, generation=generation, reason=reason)
        await self._change(cluster_pb2.WatchRoutesResponse(routes=routes, ended=[ended], pending=pending))

    async def _change(self, table: cluster_pb2.WatchRoutesResponse) -> None:
        async with self._changed:
            table.version = self._table.version + 1
            self._table = table
            self._changed.notify_all()

    async def GetStatus(self, request, context):  # noqa: ANN001, ANN201, N802
        named = [route.replica for route in self._table.routes]
        replicas = [cluster_pb2.ReplicaStatus(name=name, state="ready", engine=self._engine) for name in named]
        return cluster_pb2.GetStatusResponse(name="test", model="small", version="0", replicas=replicas)

    async def WatchStatus(self, request, context) -> AsyncIterator[cluster_pb2.WatchStatusResponse]:  # noqa: ANN001, N802
        async for _ in self.WatchRoutes(request, context):
            yield cluster_pb2.WatchStatusResponse(status=await self.GetStatus(request, context))

    async def GetModel(self, request, context):  # noqa: ANN001, ANN201, N802
        return cluster_pb2.GetModelResponse(name="small", path=self.model_path, fingerprint="feedbeef", has_mtp=True)

    async def ReportWaiting(self, request, context):  # noqa: ANN001, ANN201, N802
        self.waiting = request
        return cluster_pb2.ReportWaitingResponse()

    async def WatchRoutes(self, request, context) -> AsyncIterator[cluster_pb2.WatchRoutesResponse]:  # noqa: ANN001, N802
        heard = 0
        self.watchers += 1
        try:
            while True:
                async with self._changed:
                    while self._table.version == heard:
                        await self._changed.wait()
                    table, heard = self._table, self._table.version
                yield table
        finally:
            self.watchers -= 1
