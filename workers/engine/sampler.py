"""Rank 0 of the last stage: turns a round's hidden states into its Verdict. Owns the sampling state."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.round import FAILED, IntArray, Round, Verdict, ints, ranges
from outrider.workers.speculation.logprobs import Logprobs, joined, logprobs
from outrider.workers.speculation.model_parts import Head
from outrider.workers.speculation.sequence_starts import SequenceStarts
from outrider.workers.speculation.verify import verify_round

_ROWS_AT_ONCE = 64


class Sampler:
    """Draws the target's token at every sampled row, and verifies the drafts against them."""

    def __init__(self, head: Head, starts: SequenceStarts, max_model_len: int) -> None:
        self._head, self._starts, self._max_model_len = head, starts, max_model_len
        self.busy_s = 0.0

    def judge(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        """The Verdict, and the accepted rows' hidden states, [sum(accepted_rows), hidden].

        `hidden` is the model's output after the final norm, [rows, hidden], which the last stage took `stage_s` for.
        """
        began = time.perf_counter()
        self._starts.end(round.ends)
        self._starts.begin(round.begins)
        self._starts.write_drafts(round)
        rows, owners = sampled_rows(round)
        positions = rows + (round.starts - round.query_offsets[:-1])[owners] + 1
        logits, targets = self._head.draw(hidden, rows, round.sequence_ids[owners], positions)
        took = time.perf_counter() - began
        self.busy_s += took
        verdict = verify_round(round, targets, self._starts, self._max_model_len, stage_s + took)
        verdict = _with_failures(verdict, self._starts.failed(round, verdict))
        self._starts.write_verdict(round, verdict)
        asked = joined([self._emitted(round, verdict, logits), *self._prompts(round, hidden)])
        return _with_logprobs(verdict, asked), _leading_rows(round, hidden, verdict.accepted_rows)

    def _emitted(self, round: Round, verdict: Verdict, logits: Tensor) -> Logprobs:
        """What was asked for of the emitted tokens: of the raw logits, at the row of each."""
        wanted = [self._starts[sequence_id].params.logprobs for sequence_id in round.sequence_ids.tolist()]
        if all(count is None for count in wanted):
            return (
                Logprobs(offsets=ints(np.zeros(len(verdict.token_ids) + 1))) if round.score_counts.any() else Logprobs()
            )
        emitted = np.diff(verdict.token_offsets)
        first_logits = np.cumsum(round.sample_counts) - round.sample_counts
        rows = torch.from_numpy(np.repeat(first_logits, emitted) + ranges(emitted))
        counts = [wanted[s] for s in np.repeat(np.arange(round.sequences), emitted)]
        return logprobs(logits[rows], verdict.token_ids, counts)

    def _prompts(self, round: Round, hidden: Tensor) -> Iterator[Logprobs]:
        """What was asked for of prompt tokens, some rows at a time: a head's outputs are many."""
        if not round.score_counts.any():
            return
        owners = np.repeat(np.arange(round.sequences), round.score_counts)
        ends = (round.query_offsets[1:] - round.sample_counts)[owners]
        rows = ends - round.score_counts[owners] + ranges(round.score_counts)
        following = np.append(round.token_ids[1:], 0)
        following[round.query_offsets[1:] - 1] = round.next_token_ids
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            some = slice(first, first + _ROWS_AT_ONCE)
            counts = [self._starts[int(round.sequence_ids[s])].params.prompt_logprobs for s in owners[some]]
            yield logprobs(self._head.logits(hidden, rows[some]), following[rows[some]], counts)


def _with_failures(verdict: Verdict, failed: list[int]) -> Verdict:
    """These sequences end here: what they gained may not be what was asked for."""
    if not failed:
        return verdict
    finish = verdict.finish.copy()
    finish[failed] = FAILED
    return replace(verdict, finish=finish)


def _with_logprobs(verdict: Verdict, found: Logprobs) -> Verdict:
    return replace(
        verdict,
        logprob_offsets=found.offsets,
        logprob_ids=found.ids,
        logprob_ranks=found.ranks,
        logprob_values=found.values,
    )


def sampled_rows(round: Round) -> tuple[IntArray, IntArray]:
    """The rows to sample and the sequence that each belongs to, [sum(sample_counts)] both."""
    counts = round.sample_counts
    if round.sequences == 1:
        return np.arange(round.rows - counts[0], round.rows), np.zeros(counts[0], dtype=np.int64)
    first = round.query_offsets[1:] - counts
    return np.repeat(first, counts) + ranges(counts), ints(np.repeat(np.arange(round.sequences), counts))


def _leading_rows(round: Round, hidden: Tensor, counts: IntArray) -> Tensor:
    """The first `counts[s]` rows of each sequence, end to end."""
    if round.sequences == 1:
        return hidden[: int(counts[0])]
    return hidden[torch.from_numpy(np.repeat(round.query_offsets[:-1], counts) + ranges(counts))]
