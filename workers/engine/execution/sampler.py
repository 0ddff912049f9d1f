"""Rank 0 of the last stage: turns a round's hidden states into its Verdict. Owns the sampling state."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.execution.runner import RoundErrorContext
from outrider.workers.sampling.head import Head
from outrider.workers.sampling.logprobs import Logprobs, joined, logprobs
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.sampling.shared_head import SharedHead
from outrider.workers.sampling.verify import verify_round
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.round import (
    FAILED,
    IntArray,
    Round,
    SampledRows,
    Verdict,
    ints,
    owned,
    ranges,
    share_of,
)

_ROWS_AT_ONCE = 64


class _Drawn(NamedTuple):
    """A round's draws. On a GPU they may still be running."""

    logits: Tensor
    tokens: Tensor
    began: float
    ended: float  # when they were enqueued (GPU) or made (CPU)


class Sampler:
    """Draws the model's token at every sampled row, and verifies the drafts against them."""

    def __init__(
        self, head: Head, starts: SequenceStarts, max_model_len: int, shared: SharedHead | None = None
    ) -> None:
        """`shared`: if several ranks of the stage compute the logits together."""
        self._head, self._starts, self._max_model_len, self._shared = head, starts, max_model_len, shared
        self._sampled = SampledRows(ints(), ints(), ints())  # rows of the latest round
        self._drawn = _Drawn(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), 0.0, 0.0)
        self.busy_s = self._began_s = 0.0

    def begin(self, round: Round) -> None:
        """Adds and removes sequences, and prepares the draws. Called before the round runs; `verify` after it."""
        began = time.perf_counter()
        self._starts.end(round.ends)
        self.prepare(round.prepares)
        self._starts.begin(round.begins)
        self._starts.write_drafts(round)
        self._sampled = SampledRows.of(round)
        self._head.prepare(self._sampled.sequence_ids, self._sampled.positions)
        self._began_s = time.perf_counter() - began

    def draw(self, round: Round, hidden: Tensor) -> None:
        """The first half of `verify`: draws the round's tokens. On a GPU this only enqueues the work.

        `hidden` is the model's output after the final norm, [rows, hidden], of this rank's data group.
        """
        began = time.perf_counter()
        rows, sequence_ids, positions = self._sampled
        if self._shared is None:
            logits, tokens = self._head.draw(hidden, rows, sequence_ids, positions)
        else:
            logits = self._logits(round, hidden, rows)
            tokens = self._head.choose(logits, sequence_ids, positions)
        self._drawn = _Drawn(logits, tokens, began, time.perf_counter())

    def verify(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        """The Verdict, and the accepted rows' hidden states as `accepted_states`.

        `hidden` as in `draw`; the last stage took `stage_s` for it.
        """
        self.draw(round, hidden)
        return self.verdict(round, hidden, stage_s)

    def verdict(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        """The second half of `verify`. The host waits for the device here, and only here."""
        logits, tokens, began, ended = self._drawn
        targets = ints(tokens.cpu().numpy())
        took = (time.perf_counter() if tokens.device.type == "cuda" else ended) - began + self._began_s
        self.busy_s += took
        verdict = verify_round(round, targets, self._starts, self._max_model_len, stage_s + took)
        verdict = _with_failures(verdict, self._starts.failed(round, verdict))
        self._starts.write_verdict(round, verdict)
        verdict = self._with_logprobs(round, verdict, hidden, logits)
        return verdict, self.accepted(round, hidden, verdict)

    def prepare(self, constraints: Iterable[StructuredOutputsParams]) -> None:
        """Compiles grammars in the background, for sequences of later rounds."""
        self._starts.prepare(constraints)

    def compute_logits(self, round: Round, hidden: Tensor) -> None:
        """On the sampler's stage peers: computes this rank's part of all logits that the sampler needs."""
        began = time.perf_counter()
        for rows in (SampledRows.of(round).rows, *_scored(round)):
            self._logits(round, hidden, rows)
        self.busy_s += time.perf_counter() - began

    def accepted(self, round: Round, hidden: Tensor, verdict: Verdict) -> Tensor:
        """The hidden states of the accepted rows on this rank."""
        return accepted_states(round, hidden, verdict, self._shared.data if self._shared is not None else 0)

    def _logits(self, round: Round, hidden: Tensor, rows: IntArray) -> Tensor:
        """Logits of these rows, [n, vocab]. With several ranks in the stage, only the sampler gets them."""
        if self._shared is None:
            return self._head.logits(hidden, rows)
        with RoundErrorContext(round):
            return self._shared.logits(round, hidden, rows)

    def _with_logprobs(self, round: Round, verdict: Verdict, hidden: Tensor, logits: Tensor) -> Verdict:
        """Adds the requested log-probabilities of emitted and prompt tokens to the verdict."""
        wanted = [self._starts[sequence_id].params.logprobs for sequence_id in round.sequence_ids.tolist()]
        scores = bool(round.score_counts.any())
        if not scores and all(count is None for count in wanted):
            return verdict
        found = joined([_emitted(round, verdict, logits, wanted), *self._prompts(round, hidden)])
        return replace(
            verdict,
            logprob_offsets=found.offsets,
            logprob_ids=found.ids,
            logprob_ranks=found.ranks,
            logprob_values=found.values,
        )

    def _prompts(self, round: Round, hidden: Tensor) -> Iterator[Logprobs]:
        """Log-probabilities of prompt tokens, a few rows at a time to bound the size of the logits."""
        following = np.append(round.token_ids[1:], 0)
        following[round.query_offsets[1:] - 1] = round.next_token_ids
        for rows in _scored(round):
            owners = round.sequence_ids[np.searchsorted(round.query_offsets, rows, side="right") - 1]
            counts = [self._starts[owner].params.prompt_logprobs for owner in owners.tolist()]
            yield logprobs(self._logits(round, hidden, rows), following[rows], counts)


def _scored(round: Round) -> Iterator[IntArray]:
    """The rows whose next token gets log-probabilities, in groups of _ROWS_AT_ONCE."""
    if not round.score_counts.any():
        return
    owners = np.repeat(np.arange(round.sequences), round.score_counts)
    ends = (round.query_offsets[1:] - round.sample_counts)[owners]
    rows = ends - round.score_counts[owners] + ranges(round.score_counts)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows[first : first + _ROWS_AT_ONCE]


def _with_failures(verdict: Verdict, failed: list[int]) -> Verdict:
    """Ends these sequences with an error: their new tokens may violate the grammar."""
    if not failed:
        return verdict
    finish = verdict.finish.copy()
    finish[failed] = FAILED
    return replace(verdict, finish=finish)


def _emitted(round: Round, verdict: Verdict, logits: Tensor, wanted: Sequence[int | None]) -> Logprobs:
    """Log-probabilities of the emitted tokens, from the raw logits. `wanted` [S]: how many per token, by sequence."""
    emitted = np.diff(verdict.token_offsets)
    if all(count is None for count in wanted):
        return Logprobs(offsets=ints(np.zeros(len(verdict.token_ids) + 1)))
    first_logits = np.cumsum(round.sample_counts) - round.sample_counts
    rows = torch.from_numpy(np.repeat(first_logits, emitted) + ranges(emitted))
    counts = [wanted[s] for s in np.repeat(np.arange(round.sequences), emitted).tolist()]
    return logprobs(logits[rows], verdict.token_ids, counts)


def accepted_states(round: Round, hidden: Tensor, verdict: Verdict, data: int = 0) -> Tensor:
    """The accepted rows of `hidden` [rows of the data group, hidden].

    On a GPU perhaps all rows: selecting some needs a copy of indices to the device, which the drafter makes later.
    """
    own, counts = share_of(round, data), verdict.accepted_rows
    if len(round.owners):
        counts = counts[owned(round, data)]
    if sum(counts.tolist()) == hidden.shape[0]:  # len() of a tensor is Python, and slow
        return hidden
    if own.sequences == 1:
        return hidden[: int(counts[0])]
    if hidden.device.type == "cuda":
        return hidden
    return hidden[torch.from_numpy(np.repeat(own.query_offsets[:-1], counts) + ranges(counts))]
