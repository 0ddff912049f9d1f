"""Round and Verdict: what travels between leader, stages and sampler. Flat arrays, so that one message takes them.

Prefill, decode and verification are one shape: a sequence contributes n >= 1 query tokens, and the last
`sample_counts[s]` of its rows are sampled (0 for a prompt chunk that does not reach the prompt's end, else
1 + its drafts). Torch-free: the scheduler makes Rounds, the runner turns them into tensors.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.types.sampling_params import SamplingParams
from outrider.workers.types.structured_outputs import StructuredOutputsParams

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

STOP_RULE = 7  # numbers that say when a sequence's drafting ends: types/stop_rule.py


_INT64 = np.dtype(np.int64)  # made once: finding it takes as long as the rest of a small array


def ints(values: Any = ()) -> IntArray:
    return np.asarray(values, _INT64)


def as_ints(values: "array[int]") -> IntArray:
    """The array's own memory as int64, without a copy."""
    return np.frombuffer(values, _INT64) if values else ints()


def _kept(values: NDArray[Any]) -> Callable[[], Any]:
    """Gives this one array whenever asked, which is read-only: a field's default costs no new one."""
    values.flags.writeable = False
    return lambda: values


_NO_INTS, _ZERO, _NO_FLOATS = _kept(ints()), _kept(ints([0])), _kept(np.zeros(0))


def ranges(lengths: IntArray) -> IntArray:
    """0..n-1 for each n of `lengths`, end to end."""
    if len(lengths) == 1:
        return np.arange(lengths[0])
    return ints(np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths))


def offsets(lengths: Any) -> IntArray:
    """Where each of `lengths` begins when laid end to end, and where the last one ends, [n+1]."""
    if len(lengths) == 1:
        return np.array((0, lengths[0]))
    places = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=places[1:])
    return places


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStart:
    """What the sampler must know of a sequence, sent once, with its first round."""

    sequence_id: int
    output_index: int
    seed: int
    prompt_tokens: int
    params: SamplingParams
    prompt_ids: tuple[int, ...] = ()  # the prompt's distinct tokens, if a repetition penalty asks for them
    output_token_ids: tuple[int, ...] = ()  # what it had said before, elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One verification round. S sequences, R rows (query tokens), B block ids in all."""

    round_id: int = 0
    lane: int = 0
    sequence_ids: IntArray = field(default_factory=_NO_INTS)  # [S]
    query_offsets: IntArray = field(default_factory=_ZERO)  # [S+1] into token_ids
    token_ids: IntArray = field(default_factory=_NO_INTS)  # [R]
    starts: IntArray = field(default_factory=_NO_INTS)  # [S] absolute position of each sequence's first row
    write_from: IntArray = field(
        default_factory=_NO_INTS
    )  # [S] rows at earlier positions do not write the cache (shared slot)
    sample_counts: IntArray = field(
        default_factory=_NO_INTS
    )  # [S] trailing rows to sample; the last sample_counts-1 are drafts
    # [S] rows before the sampled ones, the last so many, whose next token (of the prompt) gets log-probabilities
    score_counts: IntArray = field(default_factory=_NO_INTS)
    next_token_ids: IntArray = field(
        default_factory=_NO_INTS
    )  # [S] prompt token after a chunk that does not sample, else 0
    block_offsets: IntArray = field(default_factory=_ZERO)  # [S+1] into block_ids
    block_ids: IntArray = field(default_factory=_NO_INTS)  # [B] each sequence's whole block table
    owners: IntArray = field(default_factory=_NO_INTS)  # [S] data group of each; [0] where there is only one
    draft_steps: IntArray = field(default_factory=_NO_INTS)  # [S] drafts to make after this round (0: none)
    stop_rules: FloatArray = field(default_factory=_NO_FLOATS)  # [S x 7] when drafts end before; [0]: never
    upkeep: IntArray = field(default_factory=_NO_INTS)  # [S] 1: the drafter's cache follows it; [0]: it is not asked
    followed_from: IntArray = field(default_factory=_NO_INTS)  # [S] the first slot of that cache which holds it, from 1
    begins: tuple[SequenceStart, ...] = ()  # sequences new to the sampler
    prepares: tuple[StructuredOutputsParams, ...] = ()  # what sequences of later rounds will have to conform to
    ends: IntArray = field(default_factory=_NO_INTS)  # sequence ids that the sampler and drafter may forget
    expert_order: IntArray = field(default_factory=_NO_INTS)  # what ranks do first about experts: experts/orders.py
    expert_answer: IntArray = field(default_factory=_NO_INTS)  # of the stages passed, added as it travels
    stage_s: FloatArray = field(default_factory=_NO_FLOATS)  # seconds of the stages passed, added as it travels

    @property
    def sequences(self) -> int:
        return len(self.sequence_ids)

    @property
    def rows(self) -> int:
        return len(self.token_ids)

    @property
    def positions(self) -> IntArray:
        """Absolute position of every row, [R]."""
        if self.sequences == 1:
            return np.arange(self.starts[0], self.starts[0] + self.rows)
        lengths = np.diff(self.query_offsets)
        return np.arange(self.rows) + np.repeat(self.starts - self.query_offsets[:-1], lengths)


# How a sequence ended, as Verdict.finish codes. FAILED: its grammar could not be followed any further.
RUNNING, STOPPED, LENGTH, FAILED = 0, 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the sampler says of a round. S sequences as in the Round, T accepted (emitted) tokens in all.

    A sequence with sample_counts 0 emits nothing. With d drafts it emits 1..d+1 tokens (fewer where an end or a
    limit cuts them). Hidden states of the accepted rows travel beside it: for sequence s its first
    `accepted_rows[s]` rows (a prompt chunk: all of them).
    """

    round_id: int = 0
    lane: int = 0
    token_offsets: IntArray = field(default_factory=_ZERO)  # [S+1] into token_ids
    token_ids: IntArray = field(default_factory=_NO_INTS)  # [T]
    accepted_rows: IntArray = field(
        default_factory=_NO_INTS
    )  # [S] leading rows whose hidden states the drafter may use
    drafts_accepted: IntArray = field(default_factory=_NO_INTS)  # [S]
    finish: IntArray = field(default_factory=_NO_INTS)  # [S] RUNNING, STOPPED (by its last token), LENGTH or FAILED
    # [S] drafts that the MTP module makes after it, as the leader tells the ranks beside it; [0] from the sampler
    draft_steps: IntArray = field(default_factory=_NO_INTS)
    # Of the emitted tokens, then of the round's scored prompt tokens: [T+P+1], or [1] if none was asked for.
    logprob_offsets: IntArray = field(default_factory=_ZERO)
    logprob_ids: IntArray = field(default_factory=_NO_INTS)
    logprob_ranks: IntArray = field(default_factory=_NO_INTS)
    logprob_values: FloatArray = field(default_factory=_NO_FLOATS)
    stage_s: FloatArray = field(default_factory=_NO_FLOATS)  # [P] seconds each stage computed this round
    expert_answer: IntArray = field(default_factory=_NO_INTS)  # to the round's expert_order, of all stages


def array_fields(kind: type[Round] | type[Verdict]) -> dict[str, np.dtype[Any]]:
    """Element type (of 8 bytes) of every array field, in declaration order: the order they are packed in."""
    element_types: dict[Any, np.dtype[Any]] = {IntArray: np.dtype(np.int64), FloatArray: np.dtype(np.float64)}
    return {f.name: element_types[f.type] for f in fields(kind) if f.type in element_types}


class SampledRows(NamedTuple):
    """The rows of a round whose next token is drawn, n = sum(sample_counts)."""

    rows: IntArray  # [n]
    sequence_ids: IntArray  # [n]
    positions: IntArray  # [n] absolute, of the tokens to draw

    @classmethod
    def of(cls, round: Round) -> "SampledRows":
        counts = round.sample_counts
        if round.sequences == 1:
            rows = np.arange(round.rows - counts[0], round.rows)
            return cls(rows, round.sequence_ids.repeat(counts[0]), rows + (round.starts[0] + 1))
        first = round.query_offsets[1:] - counts
        rows = np.repeat(first, counts) + ranges(counts)
        shifts = np.repeat(round.starts - round.query_offsets[:-1] + 1, counts)
        return cls(rows, np.repeat(round.sequence_ids, counts), rows + shifts)


def owned(round: Round, data: int) -> IntArray:
    """Which sequences of a round are those of data group `data`."""
    if not len(round.owners):
        return np.arange(round.sequences)
    return ints(np.flatnonzero(round.owners == data))


def share_of(round: Round, data: int) -> Round:
    """The round's sequences of one data group, as a round of their own: what that group's ranks run."""
    if not len(round.owners):
        return round
    which = owned(round, data)
    lengths, blocks = np.diff(round.query_offsets)[which], np.diff(round.block_offsets)[which]
    return replace(
        round,
        sequence_ids=round.sequence_ids[which],
        query_offsets=offsets(lengths),
        token_ids=round.token_ids[np.repeat(round.query_offsets[which], lengths) + ranges(lengths)],
        starts=round.starts[which],
        write_from=round.write_from[which],
        sample_counts=round.sample_counts[which],
        score_counts=round.score_counts[which],
        next_token_ids=round.next_token_ids[which],
        block_offsets=offsets(blocks),
        block_ids=round.block_ids[np.repeat(round.block_offsets[which], blocks) + ranges(blocks)],
        owners=ints(),
        draft_steps=round.draft_steps[which],
        stop_rules=round.stop_rules.reshape(-1, STOP_RULE)[which].ravel()
        if len(round.stop_rules)
        else round.stop_rules,
        upkeep=round.upkeep[which] if len(round.upkeep) else ints(),
        followed_from=round.followed_from[which],
    )


def verdict_for(round: Round, verdict: Verdict, data: int) -> Verdict:
    """What the verdict says of the sequences that `share_of` keeps, but for log-probabilities."""
    if not len(round.owners):
        return verdict
    which = owned(round, data)
    emitted = np.diff(verdict.token_offsets)[which]
    return replace(
        verdict,
        token_offsets=offsets(emitted),
        token_ids=verdict.token_ids[np.repeat(verdict.token_offsets[which], emitted) + ranges(emitted)],
        accepted_rows=verdict.accepted_rows[which],
        drafts_accepted=verdict.drafts_accepted[which],
        finish=verdict.finish[which],
    )
