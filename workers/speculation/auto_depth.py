"""The depth with the most expected tokens per second, from measured time and acceptance.

Acceptance is each sequence's own; time is the engine's, by depth and batch size, none being one of the depths, so
that drafting ends where it does not pay. A small share of the rounds tries other depths, so that no estimate grows
old. Pure: reads no clock.
"""

from collections.abc import Sequence
from typing import NamedTuple

from outrider.workers.speculation.acceptance import Acceptance, expected_tokens
from outrider.workers.speculation.cost import SETTLING, RoundCosts, size_class
from outrider.workers.speculation.probes import Probes

AUTO_DEPTHS = (0, 1, 2, 3, 4, 6)
_MARGIN = 1.02  # what drafting must promise over not drafting
_FIRST_GUESS = 0.7  # acceptance at every position before anything was seen
_SEQUENCE_MEMORY, _ENGINE_MEMORY, _PRIOR_WEIGHT = 30.0, 200.0, 8.0


class Drafted(NamedTuple):
    """What became of one decoding sequence's drafts in a round. Those not worth verifying count as not accepted."""

    sequence_id: int
    drafts: int  # made
    accepted: int
    finished: bool = False


class AutoDepth:
    """Chooses among `depths`, which rise from 0."""

    def __init__(self, depths: tuple[int, ...] = AUTO_DEPTHS, costs: RoundCosts | None = None) -> None:
        """`costs`: what is known of rounds' times beforehand."""
        self._depths = depths
        self._costs = costs or RoundCosts(depths)
        self._engine = self._new_acceptance(_ENGINE_MEMORY)
        self._engine_rates = [_FIRST_GUESS] * depths[-1]
        self._sequences: dict[int, Acceptance] = {}
        self._chosen: dict[int, int] = {}  # by sequence id, as of its last observation
        self._lessons: dict[tuple[int, int], int] = {}  # rounds spent on learning what (size class, depth) takes
        self._probes = Probes(depths)
        self._cap = depths[-1]
        self._prepare(batch=1)

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return len(self._sequences)

    def depth(self, sequence_id: int) -> int:
        """Drafts to make next for this sequence."""
        if sequence_id not in self._sequences:
            self._sequences[sequence_id] = self._new_acceptance(_SEQUENCE_MEMORY)
            self._chosen[sequence_id] = min(self._best(self._tokens(sequence_id)), self._cap)
        return self._probes.moved(self._chosen[sequence_id]) if self._lesson is None else self._lesson

    def observe(self, sequences: Sequence[Drafted], seconds: float | None) -> None:
        """Learns what became of every decoding sequence's drafts, and how long making and verifying them took.

        None: not to be compared with other rounds, because this one held prompt chunks.
        """
        if not sequences:
            return
        for sequence_id, drafts, accepted, finished in sequences:
            self._engine.observe(drafts, accepted, finished)
            if sequence_id in self._sequences:
                self._sequences[sequence_id].observe(drafts, accepted, finished)
        self._engine_rates = self._engine.rates([_FIRST_GUESS] * self._depths[-1])
        if seconds is not None:
            self._costs.observe(len(sequences), sum(each.drafts for each in sequences) / len(sequences), seconds)
        self._prepare(len(sequences))
        self._choose([each.sequence_id for each in sequences if each.sequence_id in self._sequences])

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence that ended."""
        self._sequences.pop(sequence_id, None)
        self._chosen.pop(sequence_id, None)

    def _prepare(self, batch: int) -> None:
        """Sets what rounds of about `batch` sequences take, and whether more must be learned of that first."""
        self._batch = batch
        self._seconds = self._costs.by_depth(batch)
        self._lesson = self._next_lesson()

    def _next_lesson(self) -> int | None:
        """A depth that must be tried at this batch size before others can be estimated: 0, and one in the middle.

        Given up after some rounds: among sequences of fixed depth the wanted mean may never come about.
        """
        for depth in (0, self._depths[len(self._depths) // 2]):
            lesson = size_class(self._batch), depth
            tries = self._lessons.get(lesson, 0)
            if self._costs.seen(self._batch, depth) < SETTLING and tries < 3 * SETTLING:
                self._lessons[lesson] = tries + 1
                return depth
        return None

    def _choose(self, sequence_ids: list[int]) -> None:
        """Sets the depths of these sequences, which share rounds, and whether the next one is a probe."""
        if not sequence_ids:
            return
        tokens = [self._tokens(sequence_id) for sequence_id in sequence_ids]
        wanted = [self._best(each) for each in tokens]
        self._cap = max(self._depths, key=lambda cap: self._worth(tokens, [min(depth, cap) for depth in wanted]))
        self._chosen.update((i, min(depth, self._cap)) for i, depth in zip(sequence_ids, wanted, strict=True))
        mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
        self._probes.plan(self._best(mean), self._seconds, mean, allowed=self._lesson is None)

    def _best(self, tokens: list[float]) -> int:
        """The depth with the most of these expected tokens per second."""
        worth = {depth: tokens[depth] / self._seconds[depth] for depth in self._depths}
        worth[0] *= _MARGIN
        return max(worth, key=worth.__getitem__)

    def _worth(self, tokens: list[list[float]], depths: list[int]) -> float:
        """Tokens per second of a round in which each sequence has its depth: one alone does not pay for its steps."""
        expected = sum(each[depth] for each, depth in zip(tokens, depths, strict=True))
        seconds = self._costs.seconds(self._batch, sum(depths) / len(depths))
        return expected / seconds * (1 if any(depths) else _MARGIN)

    def _tokens(self, sequence_id: int) -> list[float]:
        """Expected tokens of the sequence's next round, by depth."""
        return expected_tokens(self._sequences[sequence_id].rates(self._engine_rates))

    def _new_acceptance(self, memory: float) -> Acceptance:
        return Acceptance(self._depths[-1], memory=memory, prior_weight=_PRIOR_WEIGHT)
