"""Splits a Verdict into the outcome of each sequence, and makes the chunks that are sent to clients."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from outrider.workers.types.requests.request import FinishReason, SequenceChunk, TokenLogprobs
from outrider.workers.types.rounds.round import FAILED, LENGTH, RUNNING, STOPPED, Round, Verdict
from outrider.workers.types.rounds.round_time import RoundTiming
from outrider.workers.types.rounds.sequence import Sequence

_FINISH_REASONS = {
    RUNNING: None,
    STOPPED: FinishReason.STOP,
    LENGTH: FinishReason.LENGTH,
    FAILED: FinishReason.ERROR,
}


class SequenceOutcome(NamedTuple):
    """The verdict on one sequence."""

    sequence_id: int
    computed: int  # leading positions whose cache entries are now valid
    token_ids: list[int]  # emitted
    sampled: bool  # False for a chunk that did not reach the end of the sequence's tokens
    drafted: int
    accepted: int
    finish: int
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]


def outcomes(round: Round, verdict: Verdict) -> Iterator[SequenceOutcome]:
    """One SequenceOutcome per sequence of the round, in the round's order."""
    offsets = verdict.token_offsets.tolist()
    token_ids = verdict.token_ids.tolist()
    logprobs = _logprobs(verdict)
    scored = len(token_ids)  # log-probabilities of prompt tokens follow those of all emitted tokens
    columns = zip(
        round.sequence_ids.tolist(),
        round.starts.tolist(),
        round.sample_counts.tolist(),
        round.score_counts.tolist(),
        verdict.accepted_rows.tolist(),
        verdict.drafts_accepted.tolist(),
        verdict.finish.tolist(),
        strict=True,
    )
    for index, (sequence_id, start, samples, scores, rows, accepted, finish) in enumerate(columns):
        low, high = offsets[index], offsets[index + 1]
        yield SequenceOutcome(
            sequence_id,
            start + rows,
            token_ids[low:high],
            samples > 0,
            max(0, samples - 1),
            accepted,
            finish,
            logprobs[low:high],
            logprobs[scored : scored + scores],
        )
        scored += scores


def gained_chunk(sequence: Sequence, outcome: SequenceOutcome, first: bool, time: RoundTiming) -> SequenceChunk:
    """The chunk with the emitted tokens and the finish reason. `first`: the sequence had no output tokens before."""
    return SequenceChunk(
        request_id=sequence.request.request_id,
        index=sequence.output_index,
        token_ids=tuple(outcome.token_ids),
        logprobs=outcome.logprobs if sequence.request.params.logprobs is not None else (),
        drafted=outcome.drafted,
        accepted=outcome.accepted,
        finish_reason=_FINISH_REASONS[outcome.finish],
        stop_token_id=outcome.token_ids[-1] if outcome.finish == STOPPED else None,
        cached_tokens=sequence.cached_tokens if first else 0,
        saved_s=0.0 if first else time.saved_s(len(outcome.token_ids)),
        prompt_logprobs=tuple(sequence.prompt_logprobs) if first else (),
    )


def cancelled_chunk(sequence: Sequence) -> SequenceChunk:
    return SequenceChunk(
        request_id=sequence.request.request_id,
        index=sequence.output_index,
        finish_reason=FinishReason.CANCELLED,
    )


def _logprobs(verdict: Verdict) -> tuple[TokenLogprobs, ...]:
    """One entry per emitted token, then one per scored prompt token; empty if no sequence requested any."""
    if len(verdict.logprob_offsets) == 1:
        return ()
    offsets = verdict.logprob_offsets.tolist()
    ids, ranks, values = (a.tolist() for a in (verdict.logprob_ids, verdict.logprob_ranks, verdict.logprob_values))
    return tuple(
        TokenLogprobs(token_ids=tuple(ids[low:high]), logprobs=tuple(values[low:high]), ranks=tuple(ranks[low:high]))
        for low, high in pairwise(offsets)
    )
