"""Summarizes a round and its verdict for the depth policy."""

from collections.abc import Container, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from outrider.workers.depth.round_time import Shape
from outrider.workers.types.requests.sampling_params import LOOKUP
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import RUNNING, IntArray, Round, Verdict


class DraftOutcome(NamedTuple):
    """The outcome of one decoding sequence's drafts in a round."""

    sequence_id: int
    verified: int  # drafts
    accepted: int
    finished: bool = False
    gap: bool = False  # the drafter has not followed the whole sequence

    @property
    def judged(self) -> int:
        """The accepted drafts and the first rejected one; if the sequence ended, only the accepted ones."""
        return self.accepted if self.finished else min(self.verified, self.accepted + 1)


class RoundSummary(NamedTuple):
    """What the depth policy learns from a round."""

    outcomes: list[DraftOutcome]  # of decoding sequences
    shape: Shape
    continuing: dict[int, int]  # number of tokens, by id, of sequences that continue decoding


def summarize(
    round: Round, verdict: Verdict, drafts: Mapping[int, Drafts], sampled: Container[int], model: str
) -> RoundSummary:
    """`drafts`: those made after the round, by `model`. `sampled`: sequences with a temperature above 0."""
    ids, counts, starts = round.sequence_ids.tolist(), round.sample_counts.tolist(), round.starts.tolist()
    rows, emitted = _lengths(round.query_offsets), _lengths(verdict.token_offsets)
    accepted, finish = verdict.drafts_accepted.tolist(), verdict.finish.tolist()
    gaps = round.followed_from.tolist()
    outcomes, continuing = list[DraftOutcome](), dict[int, int]()
    context = rows_context = sampled_rows = 0
    for n, sequence_id in enumerate(ids):
        own_rows, count, over = rows[n], counts[n], finish[n] != RUNNING
        end = starts[n] + own_rows
        context, rows_context = context + end, rows_context + own_rows * end
        sampled_rows += count if sequence_id in sampled else 0
        if own_rows == count:
            outcomes.append(DraftOutcome(sequence_id, count - 1, accepted[n], over, gaps[n] > 1))
        if count and not over:
            continuing[sequence_id] = end - (count - 1) + emitted[n]
    steps = _steps(continuing, drafts)
    sampled_drafts = sum([own for each, own in zip(continuing, steps, strict=True) if each in sampled])
    followed = int(verdict.accepted_rows @ round.follows) if len(round.follows) else 0
    shape = Shape(
        len(ids), len(round.token_ids), float(context), float(rows_context), sampled_rows,
        max(steps, default=0), sum(steps), sampled_drafts, followed, model,
    )  # fmt: skip
    return RoundSummary(outcomes, shape, continuing)


def _lengths(offsets: IntArray) -> list[int]:
    return [end - start for start, end in pairwise(offsets.tolist())]


def _steps(sequence_ids: Iterable[int], drafts: Mapping[int, Drafts]) -> list[int]:
    """Model steps of each sequence: 0 if its drafts were looked up or not made."""
    made = [drafts.get(sequence_id) for sequence_id in sequence_ids]
    return [len(own) if own and own.drafter != LOOKUP else 0 for own in made]
