"""Prompt lookup: finds the longest earlier match of the sequence's end and drafts the tokens that followed it.

Needs no model and no cache, and takes some microseconds. It pays for copied text: edits, code, retrieval, loops. Works
with every checkpoint and any number of stages, since it needs only the tokens.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise, takewhile
from operator import mul
from typing import NamedTuple

from torch import Tensor

from outrider.workers.drafting.match_acceptance import MatchAcceptance, SequenceAcceptance
from outrider.workers.drafting.suffix_index import SuffixIndex
from outrider.workers.types.requests.sampling_params import LOOKUP
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray, Round, Verdict
from outrider.workers.types.rounds.sequence import Sequence

_LEAST_CHANCE = 0.02  # drafts less likely to be accepted are not proposed
_PROMISING = 1.0  # expected accepted drafts of a proposal; with fewer, lookup pauses for some rounds
_LONGEST_PAUSE = 8  # rounds


class _Proposal(NamedTuple):
    at: int  # length of the sequence when it was made
    length: int  # of the match
    token_ids: list[int]


class _LookupState:
    """The state of one sequence."""

    def __init__(self, engine: MatchAcceptance) -> None:
        self.index = SuffixIndex()
        self._acceptance = SequenceAcceptance(engine)
        self._proposal = _Proposal(0, 0, [])
        self._pause = self._rounds_left = 0  # in rounds: the present pause, and what is left of it

    def skips_round(self) -> bool:
        """Whether this round is in a pause, since the last proposals were unlikely to be accepted."""
        self._rounds_left -= 1
        return self._rounds_left >= 0

    def propose(self, tokens: list[int], most: int) -> Drafts:
        """The tokens after the longest match of the end of `tokens`, as far as they are likely enough."""
        match = self.index.longest(tokens)
        if match is None:
            self._proposal = _Proposal(0, 0, [])
            self._set_pause(0.0)
            return Drafts([], [], LOOKUP)
        found = continued(tokens, match.following, most)
        rates = self._acceptance.rates(match.length, len(found))
        reaches = list(takewhile(lambda reached: reached >= _LEAST_CHANCE, accumulate(rates, mul)))
        self._proposal = _Proposal(len(tokens), match.length, found)
        self._set_pause(sum(reaches))
        return Drafts(found[: len(reaches)], rates[: len(reaches)], LOOKUP)

    def _set_pause(self, expected: float) -> None:
        """Sets the pause after a proposal with so many expected accepted drafts."""
        self._pause = 0 if expected >= _PROMISING else min(max(2 * self._pause, 1), _LONGEST_PAUSE)
        self._rounds_left = self._pause

    def learn(self, tokens: list[int]) -> None:
        """Compares the last proposal, used or not, with the tokens emitted since then."""
        at, length, found = self._proposal
        if found:
            self._acceptance.observe(length, found, tokens[at : at + len(found)])


class LookupDrafter:
    """Implements Drafter. `live` returns the sequence of an id, with its committed tokens; None if it has ended."""

    def __init__(
        self,
        live: Callable[[int], Sequence | None],
        wanted: Callable[[Sequence], bool] = lambda sequence: True,
        needed: Callable[[Sequence], bool] = lambda sequence: False,
    ) -> None:
        """`wanted`: whether to look up drafts for the sequence at present; `needed`: whether to ignore pauses."""
        self._live, self._wanted, self._needed = live, wanted, needed
        self._engine = {greedy: MatchAcceptance(greedy=greedy) for greedy in (True, False)}
        self._states: dict[int, _LookupState] = {}

    def __len__(self) -> int:
        """Number of sequences with any state here."""
        return len(self._states)

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        """Drafts of the sequences that have a match, up to each one's limit; the round's draft steps do not matter."""
        drafts = {}
        columns = zip(
            round.sequence_ids.tolist(), round.sample_counts.tolist(), round.starts.tolist(),
            pairwise(round.query_offsets.tolist()), strict=True,
        )  # fmt: skip
        for sequence_id, samples, start, (first, end) in columns:
            sequence = self._live(sequence_id)
            if sequence is None or not sequence.draft_ceiling:
                continue
            state = self._state_of(sequence)
            if not samples:  # a prompt chunk: indexed now, so that no round must index the whole prompt
                state.index.extend(sequence.token_ids, start + end - first)
            elif self._is_due(state, sequence) and self._wanted(sequence):
                drafts[sequence_id] = self._propose(state, sequence)
        return {sequence_id: found for sequence_id, found in drafts.items() if found}

    def forget(self, sequence_ids: IntArray) -> None:
        for sequence_id in sequence_ids.tolist():
            self._states.pop(sequence_id, None)

    def _state_of(self, sequence: Sequence) -> _LookupState:
        state = self._states.get(sequence.sequence_id)
        if state is None:
            state = _LookupState(self._engine[sequence.request.params.greedy])
            self._states[sequence.sequence_id] = state
        return state

    def _is_due(self, state: _LookupState, sequence: Sequence) -> bool:
        """Whether to look up in this round: not in a pause, unless the sequence needs lookup in every round."""
        return not state.skips_round() or self._needed(sequence)

    def _propose(self, state: _LookupState, sequence: Sequence) -> Drafts:
        state.learn(sequence.token_ids)
        room = sequence.limit - len(sequence.token_ids) - 1
        if room <= 0:
            return Drafts([], [], LOOKUP)
        return state.propose(sequence.token_ids, min(sequence.draft_ceiling, room))


def continued(tokens: list[int], place: int, most: int) -> list[int]:
    """`most` tokens from `place` on. Beyond the end of `tokens`, they repeat, as a loop would."""
    found = tokens[place : place + most]
    while len(found) < most:
        found += found[: most - len(found)]
    return found
