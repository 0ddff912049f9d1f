"""Runs batches on an engine and times them as the engine's own thread sees the tokens come."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outrider import LLM, SamplingParams
from outrider.workers.types.requests.request import SequenceChunk
from outrider.workers.types.requests.sampling_params import MAX_DRAFT_TOKENS

DEADLINE_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What a batch took. `first_s`: until every prompt had its first token; everything else: from there to the last.

    `each_s`: the same of every sequence, until its own last token, added up. A batch whose sequences end apart is alone
    at its end, and slow for no request: what each waited for its tokens is `each_s` over `tokens`.
    """

    first_s: float
    rest_s: float
    each_s: float
    tokens: int
    rounds: int  # of every sequence, added up
    drafted: int
    accepted: int
    drafted_at: tuple[int, ...]  # element j: rounds of a sequence that verified at least j + 1 drafts
    accepted_at: tuple[int, ...]  # element j: of those, whose first j + 1 all stood

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.rest_s

    @property
    def tokens_per_second_each(self) -> float:
        """Of one sequence."""
        return self.tokens / self.each_s


def acceptance_per_position(decoded: Sequence[Decoded]) -> list[float]:
    """Of the drafts at each position the share that was accepted, as far as any were verified."""
    drafted = [sum(column) for column in zip(*(one.drafted_at for one in decoded), strict=True)]
    accepted = [sum(column) for column in zip(*(one.accepted_at for one in decoded), strict=True)]
    return [a / d for a, d in zip(accepted, drafted, strict=True) if d]


class BatchLLM(LLM):
    """An LLM that times a batch. Makes no text, and wakes no thread while it runs."""

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        on_first: Callable[[], None] = lambda: None,
    ) -> Decoded:
        """All prompts at once. `on_first` is called on the engine's thread when every prompt has its first token."""
        requests = self._requests(prompts, params)
        watch = Watch({request.request_id for request in requests}, on_first)
        began = time.perf_counter()
        for request in requests:
            self._host.engine.submit(request, watch)
        if not watch.ended.wait(DEADLINE_S):
            raise RuntimeError(f"a batch of {len(requests)} has not ended after {DEADLINE_S:.0f} s")
        if watch.error:
            raise RuntimeError(watch.error)
        return watch.result(began)


class Watch:
    """Takes the chunks of a batch, one call a round. One that runs to its end with its first tokens decodes nothing."""

    def __init__(self, request_ids: set[str], on_first: Callable[[], None]) -> None:
        self._without_token, self._running = set(request_ids), set(request_ids)
        self._on_first = on_first
        self._first_at = self._last_at = 0.0
        self._each_s = 0.0
        self._tokens = self._rounds = self._drafted = self._accepted = 0
        self._drafted_at, self._accepted_at = [0] * MAX_DRAFT_TOKENS, [0] * MAX_DRAFT_TOKENS
        self.error = ""
        self.ended = threading.Event()

    def __call__(self, chunks: Sequence[SequenceChunk]) -> None:
        now = time.perf_counter()
        if self._without_token:
            self._look_for_first(chunks, now)
        else:
            for chunk in chunks:
                self._count(chunk)
        ended = {chunk.request_id for chunk in chunks if chunk.finish_reason is not None}
        if self._first_at:
            self._each_s += len(ended) * (now - self._first_at)
        self._running -= ended
        self.error = next((chunk.error for chunk in chunks if chunk.error), self.error)
        if not self._running or self.error:
            self._last_at = now
            self.ended.set()

    def _look_for_first(self, chunks: Sequence[SequenceChunk], now: float) -> None:
        self._without_token -= {chunk.request_id for chunk in chunks if chunk.token_ids}
        if not self._without_token:
            self._first_at = now
            self._on_first()

    def _count(self, chunk: SequenceChunk) -> None:
        self._tokens += len(chunk.token_ids)
        self._rounds += bool(chunk.token_ids)
        self._drafted += chunk.drafted
        self._accepted += chunk.accepted
        for place in range(chunk.drafted):
            self._drafted_at[place] += 1
            self._accepted_at[place] += place < chunk.accepted

    def result(self, began: float) -> Decoded:
        return Decoded(
            first_s=self._first_at - began,
            rest_s=self._last_at - self._first_at,
            each_s=self._each_s,
            tokens=self._tokens,
            rounds=self._rounds,
            drafted=self._drafted,
            accepted=self._accepted,
            drafted_at=tuple(self._drafted_at),
            accepted_at=tuple(self._accepted_at),
        )
