"""One accepted request, from the engine's chunks to the client's events. Knows nothing of gRPC."""

import asyncio
import time
from collections.abc import Iterable, Iterator

from outrider.cluster.gateway.replica import Replica
from outrider.cluster.generation import Accepted, Event, Failed, Finished, GenerateCall, Output
from outrider.workers.engine.request import Request, SequenceChunk
from outrider.workers.outputs import logprobs_by_token
from outrider.workers.text.assembler import OutputDelta, RequestAssembler, Usage
from outrider.workers.text.tokenizer import Tokenizer

_PROMPT_LOGPROBS_AT_ONCE = 512


class RequestStream:
    """Runs on one replica. The queue between engine and client holds at most one output's length: nothing is dropped,
    and what a slow client missed becomes one larger delta."""

    def __init__(self, call: GenerateCall, request: Request, replica: Replica, tokenizer: Tokenizer | None) -> None:
        self.request = request
        self.replica = replica
        self.first_token_at: float | None = None  # time.monotonic()
        self.failed = False
        self._client = replica.client
        self._tokenizer = tokenizer
        self._detail = call.speculation_detail
        self._assembler = RequestAssembler(tokenizer, request.params, len(request.prompt_token_ids))
        self._rounds: asyncio.Queue[list[SequenceChunk]] = asyncio.Queue()

    @property
    def finished(self) -> bool:
        """The last event was given."""
        return self.failed or self._assembler.finished

    @property
    def usage(self) -> Usage:
        return self._assembler.usage

    def start(self) -> Accepted:
        """EngineStoppedError if the leader has just gone."""
        self._client.submit(self.request, self._rounds.put_nowait)
        return Accepted(
            request_id=self.request.request_id,
            seed=self.request.seed,
            prompt_tokens=len(self.request.prompt_token_ids),
            fingerprint=self.replica.info.fingerprint,
        )

    def fail(self, message: str) -> None:
        """Ends the stream with an error event, after what has been generated so far."""
        self._rounds.put_nowait([SequenceChunk(request_id=self.request.request_id, error=message)])

    def close(self) -> None:
        """However it ended: the engine does not go on with it."""
        if self.failed or not self._assembler.finished:
            self._client.cancel(self.request.request_id)

    async def next_events(self) -> list[Event]:
        """What has come since the last call; waits for at least one round."""
        chunks = await self._rounds.get()
        while not self._rounds.empty():
            chunks = chunks + self._rounds.get_nowait()
        error = next((chunk.error for chunk in chunks if chunk.error), None)
        deltas = [self._assemble(chunk) for chunk in chunks if not chunk.error]
        events = [event for index in range(self.request.params.n) for event in self._events_of(index, deltas)]
        if self._assembler.finished:
            return _with_usage(events, self.usage)
        if error is not None:
            self.failed = True
            events.append(Failed(message=await self._explain(error)))
        return events

    def _assemble(self, chunk: SequenceChunk) -> OutputDelta:
        delta = self._assembler.add(chunk)
        if delta.must_cancel:
            self._client.cancel(self.request.request_id, delta.index)
        if delta.token_ids and self.first_token_at is None:
            self.first_token_at = time.monotonic()
        return delta

    def _events_of(self, index: int, deltas: Iterable[OutputDelta]) -> list[Event]:
        """One output's deltas as one event, and its end as another."""
        own = [delta for delta in deltas if delta.index == index]
        events: list[Event] = [*self._prompt_events(index, own)]
        token_ids = tuple(token_id for delta in own for token_id in delta.token_ids)
        text = "".join(delta.text for delta in own)
        reasoning = "".join(delta.reasoning for delta in own)
        if token_ids or text or reasoning:
            logprobs = [entry for delta in own for entry in delta.logprobs]
            events.append(
                Output(
                    index=index,
                    token_ids=token_ids,
                    text=text,
                    reasoning=reasoning,
                    drafted=sum(delta.drafted for delta in own) if self._detail else 0,
                    accepted=sum(delta.accepted for delta in own) if self._detail else 0,
                    logprobs=tuple(logprobs_by_token(logprobs, self._tokenizer)),
                )
            )
        events += [
            Finished(index=index, reason=delta.finish_reason, stop_reason=delta.stop_reason)
            for delta in own
            if delta.finish_reason is not None
        ]
        return events

    def _prompt_events(self, index: int, own: Iterable[OutputDelta]) -> Iterator[Output]:
        """Log-probabilities of the prompt, in messages of bounded size."""
        entries = [entry for delta in own for entry in delta.prompt_logprobs]
        for first in range(0, len(entries), _PROMPT_LOGPROBS_AT_ONCE):
            some = logprobs_by_token(entries[first : first + _PROMPT_LOGPROBS_AT_ONCE], self._tokenizer)
            yield Output(index=index, prompt_logprobs=tuple(some))

    async def _explain(self, error: str) -> str:
        return await self.replica.why(error) if self._client.broken.is_set() else error


def _with_usage(events: list[Event], usage: Usage) -> list[Event]:
    """The request's last event, which is the end of an output, carries the usage."""
    ends = [n for n, event in enumerate(events) if isinstance(event, Finished)]
    last = events.pop(ends[-1])
    assert isinstance(last, Finished)
    return [*events, Finished(index=last.index, reason=last.reason, stop_reason=last.stop_reason, usage=usage)]
