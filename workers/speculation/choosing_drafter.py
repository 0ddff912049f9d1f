"""All drafters of a replica behind one: each sequence's drafts come from the one it asked for, or the one that pays.

Models follow every round, whether they draft or not, so that their caches stay right. Prompt lookup goes first, since
it costs next to nothing; a model's steps are spared where its proposal is worth more.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from outrider.workers.engine.round import RUNNING, IntArray, Round, Verdict, ints
from outrider.workers.engine.sequence import Sequence
from outrider.workers.sampling_params import AUTO, LOOKUP
from outrider.workers.speculation.drafter import Draft, Drafter
from outrider.workers.speculation.drafter_choice import DrafterChooser
from outrider.workers.speculation.drafter_prices import DrafterPrices

Drafts = dict[int, list[Draft]]


class ChoosingDrafter:
    """Implements Drafter."""

    def __init__(
        self,
        models: Mapping[str, Drafter],
        lookup: Drafter | None,
        live: Callable[[int], Sequence | None],
        speculation: str | int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`models` pay for each step. `live` gives the sequence of an id, None once it ended.

        `speculation` is the engine's. A fixed depth is the first model's, if there is one and the request names none.
        """
        self._models, self._lookup, self._live = models, lookup, live
        self._speculation, self._clock = speculation, clock
        self.chooser = DrafterChooser(list(models), DrafterPrices())
        self._made: dict[int, tuple[str, int]] = {}  # drafts under verification: by whom, and how many
        self._called_at: float | None = None  # since then the engine was never without work

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, list[Draft]]:
        self._learn(round, verdict)
        found = dict(self._lookup.draft(round, verdict, hidden)) if self._lookup is not None else {}
        owners, found = self._choose(round, verdict, found)
        drafts: Drafts = {}
        for name, drafter in self._models.items():
            drafts.update(self._model_drafts(name, drafter, round, owners, verdict, hidden))
        drafts.update(found)
        for sequence_id, own in drafts.items():
            if own:
                self._made[sequence_id] = own[0].drafter, len(own)
        return drafts

    def forget(self, sequence_ids: IntArray) -> None:
        for drafter in (*self._models.values(), *([self._lookup] if self._lookup is not None else [])):
            drafter.forget(sequence_ids)
        for sequence_id in sequence_ids.tolist():
            self.chooser.forget(sequence_id)
            self._made.pop(sequence_id, None)

    def _choose(self, round: Round, verdict: Verdict, found: Drafts) -> tuple[list[str | None], Drafts]:
        """Which model drafts for each of the round's sequences, and what was looked up for the others."""
        owners: list[str | None] = []
        kept: Drafts = {}
        sharing = int(((round.draft_steps > 0) & (verdict.finish == RUNNING)).sum())
        for sequence_id, steps in zip(round.sequence_ids.tolist(), round.draft_steps.tolist(), strict=True):
            owner, own = self._chosen(sequence_id, steps, sharing, found.get(sequence_id, []))
            owners.append(owner)
            if own:
                kept[sequence_id] = own
        return owners, kept

    def _chosen(
        self, sequence_id: int, steps: int, sharing: int, proposal: list[Draft]
    ) -> tuple[str | None, list[Draft]]:
        """The model that is to draft for the sequence, or None and what is kept of the proposal."""
        sequence = self._live(sequence_id)
        if sequence is None:
            return None, []
        wanted = sequence.request.params.drafter or AUTO
        depth = sequence.request.params.speculation or self._speculation
        if wanted in self._models:
            return wanted, []
        if isinstance(depth, int) or wanted == LOOKUP:
            first = next(iter(self._models), None) if wanted == AUTO else None
            return first, proposal if first is None else []
        if not proposal and len(self._models) < 2:
            return next(iter(self._models), None), []
        kept, worth = self.chooser.looked_up(proposal)
        model, model_worth = self.chooser.best_model(sequence_id, steps, sharing)
        if not kept or worth <= model_worth:
            return model, []
        self.chooser.pass_over(sequence_id)
        return None, proposal[:kept]

    def _model_drafts(
        self, name: str, drafter: Drafter, round: Round, owners: list[str | None], verdict: Verdict, hidden: Tensor
    ) -> Mapping[int, list[Draft]]:
        """Lets a model follow the round, and draft for the sequences that are its own."""
        if any(owner != name for owner in owners):
            own = ints([owner == name for owner in owners])
            round = replace(round, draft_steps=round.draft_steps * own)
        began = self._clock()
        drafts = drafter.draft(round, verdict, hidden)
        if steps := max(map(len, drafts.values()), default=0):
            self.chooser.prices.observe_drafting(name, steps, self._clock() - began)
        return drafts

    def _learn(self, round: Round, verdict: Verdict) -> None:
        """Takes in what became of the drafts, and how long the round took."""
        now, before = self._clock(), self._called_at
        self._called_at = now if (verdict.finish == RUNNING).any() else None
        decodes = bool((round.sample_counts == round.query_offsets[1:] - round.query_offsets[:-1]).all())
        if decodes and before is not None:
            round_s = float(verdict.stage_s.sum())
            self.chooser.prices.observe_round(round.rows, len(verdict.token_ids), round_s, now - before)
        columns = zip(
            round.sequence_ids.tolist(), verdict.drafts_accepted.tolist(), verdict.finish.tolist(), strict=True
        )
        for sequence_id, accepted, finish in columns:
            name, made = self._made.pop(sequence_id, ("", 0))
            if name in self.chooser.acceptance:
                self.chooser.acceptance[name].observe(sequence_id, made, accepted, finish != RUNNING)
