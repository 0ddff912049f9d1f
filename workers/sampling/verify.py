"""Verification: compares a round's drafts with the model's draws and makes the Verdict. Integers only, no tensors.

A draft is accepted if the model drew the same token. The first draft that differs is replaced by the model's token, and
later drafts are discarded. So the emitted tokens are those of decoding without speculation, whatever was drafted.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np

from outrider.workers.types.rounds.round import (
    LENGTH,
    RUNNING,
    STOPPED,
    IntArray,
    Round,
    SequenceStart,
    Verdict,
    ints,
    offsets,
)


class Starts(Protocol):
    """The SequenceStart of every live sequence, by id, and the model's end-of-sequence ids."""

    eos_token_ids: tuple[int, ...]

    def __getitem__(self, sequence_id: int) -> SequenceStart: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A sequence ends at a token of `end_ids`, or when it has `max_length` tokens, prompt included.

    min_tokens is not needed here, since sampling excludes end ids until it is reached.
    """

    end_ids: frozenset[int]
    max_length: int

    @classmethod
    def of(cls, start: SequenceStart, eos_token_ids: tuple[int, ...], max_model_len: int) -> "Limits":
        params = start.params
        ends = _end_ids(tuple(params.stop_token_ids or ()), () if params.ignore_eos else eos_token_ids)
        budget = max_model_len if params.max_tokens is None else start.prompt_tokens + params.max_tokens
        return cls(end_ids=ends, max_length=min(budget, max_model_len))


@dataclass(frozen=True, slots=True)
class AcceptedTokens:
    """The tokens that one sequence gains: at least one, unless it has reached its limit before."""

    token_ids: list[int]
    drafts_accepted: int
    finish: int  # RUNNING, STOPPED (by its last token, even if that one reaches the limit) or LENGTH


def verify(targets: list[int], drafts: list[int], length: int, limits: Limits) -> AcceptedTokens:
    """Verifies one sequence of `length` tokens. `targets[j]` was drawn after `drafts[:j]`; there is one more target."""
    matching = 0
    while matching < len(drafts) and drafts[matching] == targets[matching]:
        matching += 1
    tokens = targets[: max(0, min(matching + 1, limits.max_length - length))]
    finish = LENGTH if length + len(tokens) >= limits.max_length else RUNNING
    if not limits.end_ids.isdisjoint(tokens):
        end = next(j for j, token in enumerate(tokens) if token in limits.end_ids)
        tokens, finish = tokens[: end + 1], STOPPED
    return AcceptedTokens(tokens, min(matching, len(tokens)), finish)


def verify_round(
    round: Round, targets: IntArray, starts: Starts, max_model_len: int, last_stage_s: float = 0.0
) -> Verdict:
    """Verifies every sequence of a round. `targets`: the draws at its sampled rows, [sum(sample_counts)].

    `last_stage_s`: computing time of the last stage.
    """
    drawn, query, borders = targets.tolist(), round.token_ids.tolist(), round.query_offsets.tolist()
    token_ids: list[int] = []
    emitted, kept, matched, finish, at = [], [], [], [], 0
    for sequence_id, start, count, (first, end) in zip(
        round.sequence_ids.tolist(), round.starts.tolist(), round.sample_counts.tolist(), pairwise(borders), strict=True
    ):
        accepted = _NOTHING
        unsampled = end - first - count
        if count:
            limits = Limits.of(starts[sequence_id], starts.eos_token_ids, max_model_len)
            drafts = query[end - count + 1 : end]
            accepted = verify(drawn[at : at + count], drafts, start + unsampled + 1, limits)
        token_ids += accepted.token_ids
        emitted.append(len(accepted.token_ids))
        kept.append(unsampled + len(accepted.token_ids))
        matched.append(accepted.drafts_accepted)
        finish.append(accepted.finish)
        at += count
    return Verdict(
        round_id=round.round_id,
        lane=round.lane,
        token_offsets=offsets(emitted),
        token_ids=ints(token_ids),
        accepted_rows=ints(kept),
        drafts_accepted=ints(matched),
        finish=ints(finish),
        stage_s=np.array([*round.stage_s.tolist(), last_stage_s]),
        expert_answer=round.expert_answer,
    )


_NOTHING = AcceptedTokens([], 0, RUNNING)


@lru_cache(maxsize=1024)
def _end_ids(stop_token_ids: tuple[int, ...], eos_token_ids: tuple[int, ...]) -> frozenset[int]:
    return frozenset((*stop_token_ids, *eos_token_ids))
