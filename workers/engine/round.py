"""Round and Verdict: what travels between leader, stages and sampler. Flat arrays, so that one message takes them.

Prefill, decode and verification are one shape: a sequence contributes n >= 1 query tokens, and the last
`sample_counts[s]` of its rows are sampled (0 for a prompt chunk that does not reach the prompt's end, else
1 + its drafts). Torch-free: the scheduler makes Rounds, the runner turns them into tensors.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.workers.sampling_params import SamplingParams

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def ints(values: Any = ()) -> IntArray:
    return np.asarray(values, dtype=np.int64)


def ranges(lengths: IntArray) -> IntArray:
    """0..n-1 for each n of `lengths`, end to end."""
    if len(lengths) == 1:
        return np.arange(lengths[0])
    return ints(np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths))


def offsets(lengths: Any) -> IntArray:
    """Where each of `lengths` begins when laid end to end, and where the last one ends, [n+1]."""
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
    sequence_ids: IntArray = field(default_factory=ints)  # [S]
    query_offsets: IntArray = field(default_factory=lambda: ints([0]))  # [S+1] into token_ids
    token_ids: IntArray = field(default_factory=ints)  # [R]
    starts: IntArray = field(default_factory=ints)  # [S] absolute position of each sequence's first row
    write_from: IntArray = field(
        default_factory=ints
    )  # [S] rows at earlier positions do not write the cache (shared slot)
    sample_counts: IntArray = field(
        default_factory=ints
    )  # [S] trailing rows to sample; the last sample_counts-1 are drafts
    score_counts: IntArray = field(
        default_factory=ints
    )  # [S] rows before the sampled ones, the last so many, whose next token (of the prompt) gets log-probabilities
    next_token_ids: IntArray = field(
        default_factory=ints
    )  # [S] prompt token after a chunk that does not sample, else 0
    block_offsets: IntArray = field(default_factory=lambda: ints([0]))  # [S+1] into block_ids
    block_ids: IntArray = field(default_factory=ints)  # [B] each sequence's whole block table
    draft_steps: IntArray = field(default_factory=ints)  # [S] drafts to make after this round (0: none)
    upkeep: IntArray = field(default_factory=ints)  # [S] 1: the drafter's cache follows this sequence
    begins: tuple[SequenceStart, ...] = ()  # sequences new to the sampler
    ends: IntArray = field(default_factory=ints)  # sequence ids that the sampler and drafter may forget
    stage_s: FloatArray = field(
        default_factory=lambda: np.zeros(0)
    )  # seconds of the stages passed, added as it travels

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
    token_offsets: IntArray = field(default_factory=lambda: ints([0]))  # [S+1] into token_ids
    token_ids: IntArray = field(default_factory=ints)  # [T]
    accepted_rows: IntArray = field(default_factory=ints)  # [S] leading rows whose hidden states the drafter may use
    drafts_accepted: IntArray = field(default_factory=ints)  # [S]
    finish: IntArray = field(default_factory=ints)  # [S] RUNNING, STOPPED (by its last token), LENGTH or FAILED
    # Of the emitted tokens, then of the round's scored prompt tokens: [T+P+1], or [1] when nobody asked.
    logprob_offsets: IntArray = field(default_factory=lambda: ints([0]))
    logprob_ids: IntArray = field(default_factory=ints)
    logprob_ranks: IntArray = field(default_factory=ints)
    logprob_values: FloatArray = field(default_factory=lambda: np.zeros(0))
    stage_s: FloatArray = field(default_factory=lambda: np.zeros(0))  # [P] seconds each stage computed this round


def array_fields(kind: type[Round] | type[Verdict]) -> dict[str, np.dtype[Any]]:
    """Element type (of 8 bytes) of every array field, in declaration order: the order they are packed in."""
    element_types: dict[Any, np.dtype[Any]] = {IntArray: np.dtype(np.int64), FloatArray: np.dtype(np.float64)}
    return {f.name: element_types[f.type] for f in fields(kind) if f.type in element_types}
