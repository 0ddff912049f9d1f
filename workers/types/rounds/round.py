"""Round and Verdict: the messages between leader, stages and sampler, as flat arrays.

Prefill, decode and verification have the same form: a sequence contributes n >= 1 query tokens, and the last
`sample_counts[s]` of its rows are sampled (0 for a prompt chunk that does not reach the prompt's end, else
1 + its drafts). Torch-free: the scheduler makes Rounds, the runner turns them into tensors.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

STOP_RULE = 7  # numbers in a stop rule: types/rounds/stop_rule.py


_INT64 = np.dtype(np.int64)  # made once, since looking it up takes as long as making a small array


def ints(values: Any = ()) -> IntArray:
    return np.asarray(values, _INT64)


def as_ints(values: "array[int]") -> IntArray:
    """A view of the array's memory as int64."""
    return np.frombuffer(values, _INT64) if values else ints()


def _kept(values: NDArray[Any]) -> Callable[[], Any]:
    """A field's default factory that always returns this array, made read-only."""
    values.flags.writeable = False
    return lambda: values


_NO_INTS, _ZERO, _NO_FLOATS = _kept(ints()), _kept(ints([0])), _kept(np.zeros(0))


def ranges(lengths: IntArray) -> IntArray:
    """0..n-1 for each n of `lengths`, concatenated."""
    if len(lengths) == 1:
        return np.arange(lengths[0])
    return ints(np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths))


def offsets(lengths: Any) -> IntArray:
    """Start of each part when parts of these `lengths` are concatenated, and the end of the last, [n+1]."""
    if len(lengths) == 1:
        return np.array((0, lengths[0]))
    places = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=places[1:])
    return places


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStart:
    """What the sampler needs to know of a sequence; sent once, with its first round."""

    sequence_id: int
    output_index: int
    seed: int
    prompt_tokens: int
    params: SamplingParams
    prompt_ids: tuple[int, ...] = ()  # the prompt's distinct tokens, if a repetition penalty needs them
    output_token_ids: tuple[int, ...] = ()  # output of a resumed sequence


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
    # [S] number of rows before the sampled ones whose next token (of the prompt) gets log-probabilities
    score_counts: IntArray = field(default_factory=_NO_INTS)
    next_token_ids: IntArray = field(
        default_factory=_NO_INTS
    )  # [S] prompt token after a chunk that does not sample, else 0
    block_offsets: IntArray = field(default_factory=_ZERO)  # [S+1] into block_ids
    block_ids: IntArray = field(default_factory=_NO_INTS)  # [B] each sequence's whole block table
    owners: IntArray = field(default_factory=_NO_INTS)  # [S] data group of each; [0] with one data group
    draft_steps: IntArray = field(default_factory=_NO_INTS)  # [S] drafts to make after this round (0: none)
    stop_rules: FloatArray = field(default_factory=_NO_FLOATS)  # [S x 7] early stopping; [0]: none
    follows: IntArray = field(default_factory=_NO_INTS)  # [S] 1: the drafter follows it; [0]: it is not called
    followed_from: IntArray = field(default_factory=_NO_INTS)  # [S] first slot in the drafter's cache, from 1
    begins: tuple[SequenceStart, ...] = ()  # sequences new to the sampler
    prepares: tuple[StructuredOutputsParams, ...] = ()  # grammars to compile, for sequences of later rounds
    ends: IntArray = field(default_factory=_NO_INTS)  # sequence ids that the sampler and drafter may forget
    expert_order: IntArray = field(default_factory=_NO_INTS)  # command to run first: experts/orders.py
    expert_answer: IntArray = field(default_factory=_NO_INTS)  # the stages' answers so far; each stage appends its own
    stage_s: FloatArray = field(default_factory=_NO_FLOATS)  # the stages' seconds so far; each stage appends its own

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


# Codes in Verdict.finish. FAILED: the sequence's grammar exceeded a limit.
RUNNING, STOPPED, LENGTH, FAILED = 0, 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The sampler's result for a round. S sequences as in the Round, T emitted tokens in all.

    A sequence with sample_counts 0 emits nothing. With d drafts it emits 1..d+1 tokens (fewer at an end or a limit).
    Hidden states of the accepted rows are sent with it: of sequence s its first `accepted_rows[s]` rows (a prompt
    chunk: all of them).
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
    # [S] drafts that the MTP module makes after it, set by the leader for its stage peers; [0] from the sampler
    draft_steps: IntArray = field(default_factory=_NO_INTS)
    # Of the emitted tokens, then of the round's scored prompt tokens: [T+P+1]; [1] if none was requested.
    logprob_offsets: IntArray = field(default_factory=_ZERO)
    logprob_ids: IntArray = field(default_factory=_NO_INTS)
    logprob_ranks: IntArray = field(default_factory=_NO_INTS)
    logprob_values: FloatArray = field(default_factory=_NO_FLOATS)
    stage_s: FloatArray = field(default_factory=_NO_FLOATS)  # [P] seconds each stage computed this round
    expert_answer: IntArray = field(default_factory=_NO_INTS)  # to the round's expert_order, of all stages


def array_fields(kind: type[Round] | type[Verdict]) -> dict[str, np.dtype[Any]]:
    """Element type (8 bytes each) of every array field, in declaration order, in which messages pack them."""
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
    """Indexes of the round's sequences that belong to data group `data`."""
    if not len(round.owners):
        return np.arange(round.sequences)
    return ints(np.flatnonzero(round.owners == data))


def most_of_a_group(round: Round, counts: IntArray) -> int:
    """The largest sum of `counts` [S] over the sequences of one data group. `round` has those of all groups."""
    return int(np.bincount(round.owners, counts).max(initial=0))


def share_of(round: Round, data: int) -> Round:
    """The round with the sequences of one data group only, as that group's ranks run it."""
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
        follows=round.follows[which] if len(round.follows) else ints(),
        followed_from=round.followed_from[which],
    )


def verdict_for(round: Round, verdict: Verdict, data: int) -> Verdict:
    """The verdict on the sequences of one data group (`share_of`), without log-probabilities."""
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
