"""Drafts by looking the sequence's end up in its own prompt and output: no model, no cache, some microseconds.

What followed the longest earlier match is proposed. That pays where text is copied: edits, code, retrieval, loops.
Works with every checkpoint and any number of stages, since it needs only the tokens.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise, takewhile
from operator import mul
from typing import NamedTuple

from torch import Tensor

from outrider.workers.drafting.match_acceptance import MatchAcceptance, OwnAcceptance
from outrider.workers.drafting.suffix_index import SuffixIndex
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import IntArray, Round, Verdict
from outrider.workers.types.sampling_params import LOOKUP
from outrider.workers.types.sequence import Sequence

_DESPAIR = 0.02  # a draft that is so unlikely to be reached is not proposed
_PROMISING = 1.0  # drafts of a proposal that should stand: with fewer the next rounds are spared the question
_MOST_SPARED = 8  # rounds


class _Proposal(NamedTuple):
    at: int  # the sequence's length then
    length: int  # of the match
    token_ids: list[int]


class _Followed:
    """What is kept of one sequence."""

    def __init__(self, engine: MatchAcceptance) -> None:
        self.index = SuffixIndex()
        self._acceptance = OwnAcceptance(engine)
        self._proposal = _Proposal(0, 0, [])
        self._spared = self._to_spare = 0  # rounds: after the last question; of these still to come

    def rests(self) -> bool:
        """Whether this round is spared the question, since the last answers were of little use."""
        self._to_spare -= 1
        return self._to_spare >= 0

    def propose(self, tokens: list[int], most: int) -> Drafts:
        """What followed the longest match of the end of `tokens`, no further than it may be reached."""
        match = self.index.longest(tokens)
        if match is None:
            self._proposal = _Proposal(0, 0, [])
            self._promised(0.0)
            return Drafts([], [], LOOKUP)
        found = continued(tokens, match.following, most)
        rates = self._acceptance.rates(match.length, len(found))
        reaches = list(takewhile(lambda reached: reached >= _DESPAIR, accumulate(rates, mul)))
        self._proposal = _Proposal(len(tokens), match.length, found)
        self._promised(sum(reaches))
        return Drafts(found[: len(reaches)], rates[: len(reaches)], LOOKUP)

    def _promised(self, standing: float) -> None:
        """The answer promised that so many drafts stand."""
        self._spared = 0 if standing >= _PROMISING else min(max(2 * self._spared, 1), _MOST_SPARED)
        self._to_spare = self._spared

    def learn(self, tokens: list[int]) -> None:
        """Compares what was proposed last, whether it was used or not, with what the target said since."""
        at, length, found = self._proposal
        if found:
            self._acceptance.observe(length, found, tokens[at : at + len(found)])


class LookupDrafter:
    """Implements Drafter. `live` gives the sequence of an id, None once it ended; its tokens are the committed ones."""

    def __init__(
        self,
        live: Callable[[int], Sequence | None],
        wanted: Callable[[Sequence], bool] = lambda sequence: True,
        needed: Callable[[Sequence], bool] = lambda sequence: False,
    ) -> None:
        """`wanted`: whether drafts for the sequence are worth looking for at present; `needed`: in every round."""
        self._live, self._wanted, self._needed = live, wanted, needed
        self._engine = {greedy: MatchAcceptance(greedy=greedy) for greedy in (True, False)}
        self._followed: dict[int, _Followed] = {}

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return len(self._followed)

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        """Up to each sequence's ceiling, whatever the round's draft steps are. Those without a match are left out."""
        drafts = {}
        columns = zip(
            round.sequence_ids.tolist(), round.sample_counts.tolist(), round.starts.tolist(),
            pairwise(round.query_offsets.tolist()), strict=True,
        )  # fmt: skip
        for sequence_id, samples, start, (first, end) in columns:
            sequence = self._live(sequence_id)
            if sequence is None or not sequence.draft_ceiling:
                continue
            followed = self._follow(sequence)
            if not samples:  # a prompt's chunk: its share of the index now, so that no round pays for the whole
                followed.index.extend(sequence.token_ids, start + end - first)
            elif self._is_time(followed, sequence) and self._wanted(sequence):
                drafts[sequence_id] = self._propose(followed, sequence)
        return {sequence_id: found for sequence_id, found in drafts.items() if found}

    def forget(self, sequence_ids: IntArray) -> None:
        for sequence_id in sequence_ids.tolist():
            self._followed.pop(sequence_id, None)

    def _follow(self, sequence: Sequence) -> _Followed:
        followed = self._followed.get(sequence.sequence_id)
        if followed is None:
            followed = _Followed(self._engine[sequence.request.params.greedy])
            self._followed[sequence.sequence_id] = followed
        return followed

    def _is_time(self, followed: _Followed, sequence: Sequence) -> bool:
        """Whether to ask: in every round for who has nothing else or copies, for others where it promises something."""
        return not followed.rests() or self._needed(sequence)

    def _propose(self, followed: _Followed, sequence: Sequence) -> Drafts:
        followed.learn(sequence.token_ids)
        room = sequence.limit - len(sequence.token_ids) - 1
        if room <= 0:
            return Drafts([], [], LOOKUP)
        return followed.propose(sequence.token_ids, min(sequence.draft_ceiling, room))


def continued(tokens: list[int], place: int, most: int) -> list[int]:
    """The `most` tokens from `place` on; where they run into the end they go on with themselves, as a loop does."""
    found = tokens[place : place + most]
    while len(found) < most:
        found += found[: most - len(found)]
    return found
