"""Drafting with the compiled kernels: all draft steps in one call."""

from itertools import accumulate

from outrider.workers.drafting.draft_model import DraftRequest
from outrider.workers.drafting.kept_states import KeptStates
from outrider.workers.drafting.pairs import Pairs, pair_rows
from outrider.workers.model.compiled.model import CompiledModules
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.sampling.token_rules import Mask
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray


class CompiledDraftModel:
    """Implements DraftModel."""

    def __init__(self, module: CompiledModules, starts: SequenceStarts) -> None:
        self.module, self._starts = module, starts
        self._kept = KeptStates(module.count)

    def use(self, module: object) -> None:
        assert isinstance(module, CompiledModules), "modules of the stage that runs"
        self.module = module

    def draft(self, pairs: Pairs, wanted: DraftRequest) -> list[Drafts]:
        entries, depths, groups, stops = wanted
        steps = None if groups is None else groups.steps
        last = pairs.last_rows[entries]
        sequence_ids, positions = pairs.sequence_ids[entries], pairs.positions[last] + 2

        def allowed(which: int, depth: int) -> Mask | None:
            return self._starts.allowed(int(sequence_ids[which]), int(positions[which]) + depth)

        draws = self._starts.draws(sequence_ids, positions)
        remask = allowed if self._starts.constrains else None
        rows, chain = pair_rows(pairs), self._kept.link(pairs)
        tokens, leads, made = self.module.draft(rows, pairs.states, last, depths, draws, remask, steps, chain, stops)
        ids, sure, firsts = tokens.tolist(), leads.tolist(), accumulate(depths.tolist(), initial=0)
        return [
            Drafts(ids[first : first + count], sure[first : first + count])
            for first, count in zip(firsts, made.tolist())  # noqa: B905  # one more
        ]

    def forget(self, sequence_ids: IntArray) -> None:
        self._kept.forget(sequence_ids)
