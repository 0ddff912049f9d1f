"""One accepted request: converts the engine's chunks to the client's events, on more than one replica if it moves.

Independent of gRPC.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from outrider.cluster.api.generation import Accepted, Event, Failed, Finished, GenerateCall, Output
from outrider.cluster.gateway.routing.load import PrefixKeys
from outrider.cluster.gateway.routing.replica import ReplicaConnection
from outrider.workers.serving.rpc.leader_client import LeaderClient
from outrider.workers.text.assembler import OutputDelta, RequestAssembler, Usage, joined
from outrider.workers.text.outputs import logprobs_by_token
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.text.tool_calls import merged
from outrider.workers.types.requests.request import OutputSoFar, Request, SequenceChunk, logprobs_at_once
from outrider.workers.types.requests.tools import ToolCallDelta


class RequestStream:
    """Runs on one replica at a time, once it has its places.

    Chunks that a slow client has not read are merged into one larger delta, so nothing is dropped. The queue between
    engine and client never holds more than the outputs.
    """

    def __init__(
        self,
        call: GenerateCall,
        request: Request,
        prefix: PrefixKeys,
        replica: ReplicaConnection,
        tokenizer: Tokenizer | None,
        on_computed: Callable[[], None] = lambda: None,
    ) -> None:
        """`prefix`: of the prompt. `on_computed`: called when the replica has finished; the client may still read."""
        self._computed = 0  # outputs that this replica has finished
        self._on_computed = on_computed
        self.request = request
        self.replica = replica
        self.fingerprint = replica.info.fingerprint
        self.prefix = prefix
        self.first_token_at: float | None = None  # time.monotonic()
        self.failed = False
        self.lost = ""  # why its replica was lost; empty while it is not
        self.queued_s: float | None = None  # time from submission to its first round, at its first replica
        self.moves = self.moves_without_progress = 0
        self.crashes = 0  # consecutive replicas lost while computing its next token
        self._computing = False  # whether this replica has begun to compute its next token
        self.finish_reasons: dict[int, str] = {}  # of finished outputs
        self._failure: Failed | None = None  # the error event that will end it
        self._closed = False
        self._client = replica.client
        self._tokenizer = tokenizer
        self._detail = call.speculation_detail
        self._assembler = RequestAssembler(tokenizer, request.params, len(request.prompt_token_ids))
        outputs = request.outputs
        if call.resume is not None:
            outputs = call.resume.outputs
            self._assembler.resume_after(outputs)
        self._so_far = {output.index: list(output.token_ids) for output in outputs}  # tokens that the client has
        self._rounds: asyncio.Queue[list[SequenceChunk]] = asyncio.Queue()
        self._turn = asyncio.Event()
        self.started = False  # it was submitted to a replica

    @property
    def finished(self) -> bool:
        """Whether the last event was returned."""
        return self.failed or self._assembler.finished

    @property
    def usage(self) -> Usage:
        return self._assembler.usage

    @property
    def length(self) -> int:
        """Number of tokens to prefill before the next output token."""
        return len(self.request.prompt_token_ids) + sum(map(len, self._so_far.values()))

    @property
    def connection(self) -> LeaderClient:
        """The leader that it runs on, or ran on until the replica was lost."""
        return self._client

    def take_turn(self) -> None:
        """Called when it has its places and may be submitted."""
        self._turn.set()

    @property
    def may_start(self) -> bool:
        return self._turn.is_set()

    async def wait_for_turn(self) -> bool:
        """Waits until it may be submitted. False if it has failed before."""
        await self._turn.wait()
        return self._failure is None

    def start(self, replica: ReplicaConnection) -> None:
        """Raises EngineStoppedError if the leader has just ended."""
        self.replica, self._client = replica, replica.client
        self._submit()
        self.started = True

    def accepted(self) -> Accepted:
        return Accepted(
            request_id=self.request.request_id,
            seed=self.request.seed,
            prompt_tokens=len(self.request.prompt_token_ids),
            fingerprint=self.fingerprint,
        )

    def _submit(self) -> None:
        self._computed = 0
        self._client.submit(self.request, self._receive)
        self.replica.load.begin(self.request, self.prefix)

    def _receive(self, chunks: list[SequenceChunk]) -> None:
        self._rounds.put_nowait(chunks)
        self._computed += sum(chunk.finish_reason is not None for chunk in chunks)
        if self._computed == len(self.request.outputs):
            self._on_computed()

    def move_to(self, replica: ReplicaConnection) -> None:
        """Continues on another replica after the tokens so far. EngineStoppedError if that has just ended too."""
        self.replica.load.end(self.request.request_id)
        self.request = replace(self.request, resumed=self._unfinished(), suspect=self.crashes > 0)
        self._assembler.restart()
        self.moves += 1
        self.moves_without_progress += 1
        self._computing = False
        self.replica, self._client = replica, replica.client
        self._submit()
        self.lost = ""

    def _unfinished(self) -> tuple[OutputSoFar, ...]:
        """The outputs that an engine continues, with their tokens so far."""
        return tuple(
            OutputSoFar(index=index, token_ids=tuple(token_ids[: len(token_ids) - self._assembler.repeats(index)]))
            for index, token_ids in self._so_far.items()
            if self._assembler.unfinished(index)
        )

    async def loss_reason(self) -> str:
        """The controller's reason if it arrives in time, else the stream's own error."""
        return await self.replica.end_reason(self.lost) if self._client.broken.is_set() else self.lost

    def fail(self, message: str, *, resumable: bool = False) -> None:
        """Ends the stream with an error event, after the events so far. If called again, the first reason stays.

        `resumable`: another gateway can resume it.
        """
        self._failure = self._failure or Failed(message=message, resumable=resumable)
        self._rounds.put_nowait([])  # wakes `next_events`
        self._turn.set()
        self.lost = ""

    def close(self) -> None:
        """Cancels the request at the engine unless it has finished. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.replica.load.end(self.request.request_id)
        if self.failed or not self._assembler.finished:
            self._client.cancel(self.request.request_id)

    async def next_events(self) -> Iterator[Event]:
        """The events since the last call; waits for at least one round. Afterwards `lost` may be set.

        Events are created lazily, since some take a while.
        """
        chunks = await self._rounds.get()
        while not self._rounds.empty():
            chunks = chunks + self._rounds.get_nowait()
        error = next((chunk for chunk in chunks if chunk.error), None)
        self._computing |= any(chunk.began for chunk in chunks)
        deltas = [self._assemble(chunk) for chunk in chunks if not chunk.error and not chunk.began]
        if error is not None and not error.engine_lost:
            self._failure = self._failure or Failed(message=error.error)
        if not self._assembler.finished:
            self.failed = self._failure is not None
            self.lost = error.error if error is not None and not self.failed else ""
            self.crashes += bool(self.lost) and self._computing
        return self._events(deltas)

    def _events(self, deltas: Sequence[OutputDelta]) -> Iterator[Event]:
        """The request's last event, the Finished of an output, contains the usage."""
        last = max((delta.index for delta in deltas if delta.finish_reason is not None), default=-1)
        for index in range(self.request.params.n):
            yield from self._events_of(
                index, deltas, self.usage if self._assembler.finished and index == last else None
            )
        if self.failed and self._failure is not None:
            yield self._failure

    def _assemble(self, chunk: SequenceChunk) -> OutputDelta:
        delta = self._assembler.add(chunk)
        if delta.must_cancel:
            self._client.cancel(self.request.request_id, delta.index)
        self._so_far[delta.index] += delta.token_ids
        if delta.finish_reason is not None:
            self.finish_reasons[delta.index] = delta.finish_reason.value
        if chunk.token_ids:
            self._note_token(chunk)
        return delta

    def _note_token(self, chunk: SequenceChunk) -> None:
        self.moves_without_progress = self.crashes = 0
        self._computing = False
        self.replica.load.prefilled(self.request.request_id)
        if self.first_token_at is None:
            self.first_token_at, self.queued_s = time.monotonic(), chunk.queued_s

    def _events_of(self, index: int, deltas: Iterable[OutputDelta], usage: Usage | None) -> Iterator[Event]:
        """One output's deltas as one Output event, and its end as a Finished event."""
        own = [delta for delta in deltas if delta.index == index]
        yield from self._prompt_events(index, own)
        token_ids = tuple(token_id for delta in own for token_id in delta.token_ids)
        text = "".join(delta.text for delta in own)
        reasoning = "".join(delta.reasoning for delta in own)
        tool_calls = self._with_ids(index, merged(call for delta in own for call in delta.tool_calls))
        if token_ids or text or reasoning or tool_calls:
            logprobs = [entry for delta in own for entry in delta.logprobs]
            yield Output(
                index=index,
                token_ids=token_ids,
                text=text,
                reasoning=reasoning,
                tool_calls=tool_calls,
                drafted=sum(delta.drafted for delta in own) if self._detail else 0,
                accepted=sum(delta.accepted for delta in own) if self._detail else 0,
                pieces=joined(piece for delta in own for piece in delta.pieces) if self._detail else (),
                logprobs=tuple(logprobs_by_token(logprobs, self._tokenizer)),
            )
        for delta in own:
            if delta.finish_reason is not None:
                yield Finished(index=index, reason=delta.finish_reason, stop_reason=delta.stop_reason, usage=usage)

    def _with_ids(self, index: int, calls: Sequence[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
        """Adds an id to the first delta of each tool call. A gateway that resumes the request gives the same id."""
        return tuple(replace(call, id=self._call_id(index, call.index)) if call.name else call for call in calls)

    def _call_id(self, index: int, number: int) -> str:
        names = f"{self.request.request_id}/{index}/{number}"
        return f"call_{hashlib.sha256(names.encode()).hexdigest()[:24]}"

    def _prompt_events(self, index: int, own: Iterable[OutputDelta]) -> Iterator[Output]:
        """Log-probabilities of the prompt, in messages of bounded size."""
        entries = [entry for delta in own for entry in delta.prompt_logprobs]
        most = logprobs_at_once(entries[0]) if entries else 1
        for first in range(0, len(entries), most):
            some = logprobs_by_token(entries[first : first + most], self._tokenizer)
            yield Output(index=index, prompt_logprobs=tuple(some))
