"""Rank 0 of the last stage: turns a round's hidden states into its Verdict. Owns the sampling state."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.round import IntArray, Round, Verdict, ints, ranges
from outrider.workers.speculation.model_parts import Head
from outrider.workers.speculation.sampling import logprobs
from outrider.workers.speculation.sequence_starts import SequenceStarts
from outrider.workers.speculation.verify import verify_round


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
        rows, owners = sampled_rows(round)
        positions = rows + (round.starts - round.query_offsets[:-1])[owners] + 1
        logits, targets = self._head.draw(hidden, rows, round.sequence_ids[owners], positions)
        took = time.perf_counter() - began
        self.busy_s += took
        verdict = verify_round(round, targets, self._starts, self._max_model_len, stage_s + took)
        return self._with_logprobs(round, verdict, logits), _leading_rows(round, hidden, verdict.accepted_rows)

    def _with_logprobs(self, round: Round, verdict: Verdict, logits: Tensor) -> Verdict:
        """Adds what was asked for: of the raw logits, at the row of each emitted token."""
        emitted = np.diff(verdict.token_offsets)
        wanted = [self._starts[int(s)].params.logprobs for s in round.sequence_ids]
        if all(count is None for count in wanted):
            return verdict
        first_logits = np.cumsum(round.sample_counts) - round.sample_counts
        rows = torch.from_numpy(np.repeat(first_logits, emitted) + ranges(emitted))
        counts = [wanted[s] for s in np.repeat(np.arange(round.sequences), emitted)]
        found = logprobs(logits[rows], verdict.token_ids, counts)
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
