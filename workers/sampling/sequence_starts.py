"""The sampling state of each live sequence, for sampler and drafter: parameters, and its output if a rule needs it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.kernels.cpu.context import DRAW
from outrider.kernels.sampling import sequence_key
from outrider.workers.sampling.grammar import Constraint, Grammars
from outrider.workers.sampling.output_history import OutputHistory
from outrider.workers.sampling.sample_row import SampleRow
from outrider.workers.sampling.token_rules import Mask, TokenRules, both
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.round import IntArray, Round, SequenceStart, Verdict, ints

_POSITION, _WORDS = list(DRAW.names or ()).index("position"), DRAW.itemsize // 8


@dataclass(frozen=True, slots=True)
class _Live:
    """One sequence, for the PyTorch implementation and the compiled one."""

    start: SequenceStart
    rules: TokenRules
    output: OutputHistory | None  # None: no rule needs it
    constraint: Constraint | None
    draw: IntArray  # words of a DRAW without the position; point to arrays of `rules` and to `end_ids`
    end_ids: IntArray

    @classmethod
    def of(cls, start: SequenceStart, eos_token_ids: tuple[int, ...], grammars: Grammars | None) -> "_Live":
        rules = TokenRules.of(start.params, start.prompt_ids)
        constraint = _constraint(start.params, grammars)
        output = OutputHistory(start.output_token_ids) if rules.looks_back or constraint is not None else None
        end_ids = ints((*eos_token_ids, *(start.params.stop_token_ids or ())))
        draw = np.zeros(1, dtype=DRAW)
        _fill_draw(draw, start, end_ids)
        _fill_rules(draw, rules)
        draw["fallback"] = eos_token_ids[0] if eos_token_ids else 0
        draw["constrained"] = constraint is not None
        return cls(start, rules, output, constraint, draw.view(np.int64), end_ids)

    def allowed(self, position: int) -> Mask | None:
        """The tokens allowed at `position`; None: all."""
        if self.constraint is None or self.output is None:
            return self.rules.allowed
        mask = np.empty(self.constraint.words, dtype=np.uint32)
        if not self.constraint.fill(self.output.before(position - self.start.prompt_tokens), mask):
            return self.rules.allowed
        return mask if self.rules.allowed is None else both(mask, self.rules.allowed)

    def fails_before(self, position: int) -> bool:
        place = None if self.constraint is None else self.constraint.failed_at
        return place is not None and self.start.prompt_tokens + place < position

    def row(self, position: int, eos_token_ids: tuple[int, ...]) -> SampleRow:
        start = self.start
        output_tokens = position - start.prompt_tokens
        return SampleRow(
            params=start.params,
            seed=start.seed,
            output_index=start.output_index,
            position=position,
            output_tokens=output_tokens,
            eos_token_ids=eos_token_ids,
            rules=self.rules,
            allowed=self.allowed(position),
            output=self.output.before(output_tokens) if self.output else ints(),
        )


class SequenceStarts:
    """Live sequences by id."""

    def __init__(self, eos_token_ids: tuple[int, ...], grammars: Grammars | None = None) -> None:
        """Without `grammars`, structured outputs are not enforced; only a drafter may omit them."""
        self.eos_token_ids = eos_token_ids
        self._grammars = grammars
        self._masks: list[Mask | None] = []  # keeps the masks alive that the last draws point to
        self._live: dict[int, _Live] = {}
        self._with_history: dict[int, _Live] = {}  # sequences whose output is kept

    def __getitem__(self, sequence_id: int) -> SequenceStart:
        return self._live[sequence_id].start

    def __len__(self) -> int:
        return len(self._live)

    @property
    def constrains(self) -> bool:
        """Whether any sequence has a grammar."""
        return any(live.constraint is not None for live in self._with_history.values())

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._live

    def prepare(self, constraints: Iterable[StructuredOutputsParams]) -> None:
        """Compiles grammars in the background, for sequences of later rounds."""
        if self._grammars is not None:
            for constraint in constraints:
                self._grammars.prepare(constraint)

    def begin(self, begins: Iterable[SequenceStart]) -> None:
        """Adds sequences. Ignores known ones, since sampler and drafter of one process share this object."""
        for start in begins:
            if start.sequence_id not in self._live:
                live = self._live[start.sequence_id] = _Live.of(start, self.eos_token_ids, self._grammars)
                if live.output is not None:
                    self._with_history[start.sequence_id] = live

    def end(self, sequence_ids: IntArray) -> None:
        for sequence_id in sequence_ids.tolist():
            self._live.pop(sequence_id, None)
            self._with_history.pop(sequence_id, None)

    def write(self, sequence_id: int, position: int, token_ids: Sequence[int] | IntArray) -> None:
        """Writes the sequence's tokens, accepted or drafted, from `position` on. Rules of later rows see them."""
        live = self._with_history.get(sequence_id)
        if live is not None and live.output is not None and len(token_ids):
            live.output.write(position - live.start.prompt_tokens, token_ids)

    def write_each(self, sequence_ids: IntArray, positions: IntArray, token_ids: IntArray) -> None:
        """Writes one token of each sequence."""
        if self._with_history:
            for n, (sequence_id, position) in enumerate(zip(sequence_ids.tolist(), positions.tolist(), strict=True)):
                self.write(sequence_id, position, token_ids[n : n + 1])

    def write_drafts(self, round: Round) -> None:
        """Writes the drafts that a round verifies."""
        if not self._with_history:
            return
        for sequence_id, start, count, (first, end) in _columns(round):
            live = self._with_history.get(sequence_id)
            if live is not None and live.constraint is not None:
                live.constraint.failed_at = None
            if count > 1:
                self.write(sequence_id, start + end - first - count + 1, round.token_ids[end - count + 1 : end])

    def write_verdict(self, round: Round, verdict: Verdict) -> None:
        """Writes the tokens that a verdict emits."""
        if not self._with_history:
            return
        emitted = pairwise(verdict.token_offsets.tolist())
        for (sequence_id, start, count, (first, end)), (low, high) in zip(_columns(round), emitted, strict=True):
            self.write(sequence_id, start + end - first - count + 1, verdict.token_ids[low:high])

    def failed(self, round: Round, verdict: Verdict) -> list[int]:
        """Indexes of the round's sequences that emit a token for which the grammar failed, since `write_drafts`."""
        if not self.constrains:
            return []
        failed = []
        for index, (sequence_id, start, count, (first, end)) in enumerate(_columns(round)):
            live = self._with_history.get(sequence_id)
            emitted = int(verdict.token_offsets[index + 1] - verdict.token_offsets[index])
            if emitted and live is not None and live.fails_before(start + end - first - count + 1 + emitted):
                failed.append(index)
        return failed

    def rows(self, sequence_ids: IntArray, positions: IntArray) -> list[SampleRow]:
        """One row per (sequence, absolute position of the token to draw)."""
        places = zip(sequence_ids.tolist(), positions.tolist(), strict=True)
        return [self._live[sequence_id].row(position, self.eos_token_ids) for sequence_id, position in places]

    def draws(self, sequence_ids: IntArray, positions: IntArray) -> NDArray[Any]:
        """As `rows`, for the compiled kernels: DRAW [n], valid until the next call, or a write or end of a sequence."""
        if not len(sequence_ids):
            return np.empty(0, dtype=DRAW)
        live = [self._live[sequence_id] for sequence_id in sequence_ids.tolist()]
        words = np.concatenate([each.draw for each in live])
        words[_POSITION::_WORDS] = positions
        out = words.view(DRAW)
        if self._with_history:
            out["said"] = [each.output.address if each.output else 0 for each in live]
        if self.constrains:
            self._masks = [each.allowed(position) for each, position in zip(live, positions.tolist(), strict=True)]
            out["allowed"] = [0 if mask is None else mask.ctypes.data for mask in self._masks]
            out["allowed_words"] = [0 if mask is None else len(mask) for mask in self._masks]
        return out

    def allowed(self, sequence_id: int, position: int) -> Mask | None:
        """The tokens allowed at the sequence's `position`, after the tokens written before it; None: all."""
        return self._live[sequence_id].allowed(position)


def _constraint(params: SamplingParams, grammars: Grammars | None) -> Constraint | None:
    if params.structured_outputs is None or grammars is None:
        return None
    return grammars.follow(params.structured_outputs, params.reasoning_end_id)


def _columns(round: Round) -> Iterable[tuple[int, int, int, tuple[int, int]]]:
    """For each sequence: id, position of its first row, number of sampled rows, first and end row."""
    return zip(
        round.sequence_ids.tolist(), round.starts.tolist(), round.sample_counts.tolist(),
        pairwise(round.query_offsets.tolist()), strict=True,
    )  # fmt: skip


def _fill_draw(draw: NDArray[Any], start: SequenceStart, end_ids: IntArray) -> None:
    params = start.params
    draw["sequence_key"] = sequence_key(start.seed, start.output_index)
    draw["temperature"] = 0 if params.greedy else params.temperature
    draw["min_p"], draw["top_p"], draw["top_k"] = params.min_p, params.top_p, params.top_k
    draw["prompt_tokens"] = start.prompt_tokens
    draw["ruled_out"], draw["ruled_out_count"] = end_ids.ctypes.data, len(end_ids)
    draw["ruled_out_until"] = start.prompt_tokens + params.min_tokens


def _fill_rules(draw: NDArray[Any], rules: TokenRules) -> None:
    draw["biased"], draw["biases"] = rules.biased_ids.ctypes.data, rules.biases.ctypes.data
    draw["biased_count"] = len(rules.biased_ids)
    if rules.allowed is not None:
        draw["allowed"], draw["allowed_words"] = rules.allowed.ctypes.data, len(rules.allowed)
    draw["bad_words"], draw["bad_words_size"] = rules.bad_words.ctypes.data, len(rules.bad_words)
    draw["penalises"] = rules.penalises
    draw["repetition"], draw["frequency"], draw["presence"] = rules.repetition, rules.frequency, rules.presence
    draw["prompt_ids"], draw["prompt_ids_count"] = rules.prompt_ids.ctypes.data, len(rules.prompt_ids)
