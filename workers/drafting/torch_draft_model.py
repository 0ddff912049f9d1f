"""Drafting in PyTorch: the specification of the compiled path, and the fallback on a GPU."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.workers.drafting.draft_model import DraftRequest
from outrider.workers.drafting.feed import Feed
from outrider.workers.drafting.kept_states import KeptStates
from outrider.workers.drafting.pairs import Pairs, pair_rows
from outrider.workers.drafting.stopping import StopTracker
from outrider.workers.model.gpu.stage import GpuModules
from outrider.workers.model.mtp import MtpModules
from outrider.workers.parallel.sharing import Columns
from outrider.workers.sampling.sampling import sample_with_leads
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray, ints


class TorchDraftModel:
    """Implements DraftModel, step by step."""

    def __init__(
        self, modules: MtpModules | GpuModules, starts: SequenceStarts, vocabulary: Columns | None = None
    ) -> None:
        """`vocabulary` gathers slices of logits, if several ranks compute them."""
        self.module: MtpModules | GpuModules = modules
        self._starts, self._vocabulary = starts, vocabulary
        self._kept = KeptStates(modules.count)

    def use(self, module: object) -> None:
        assert isinstance(module, MtpModules), "modules of the stage that runs"
        self.module = module

    @torch.inference_mode()
    def draft(self, pairs: Pairs, wanted: DraftRequest) -> list[Drafts]:
        going, depths, groups, stop_rules = wanted
        most = int(depths.max(initial=0)) if groups is None else groups.steps
        live, last = np.arange(len(depths)), pairs.last_rows[going]
        feed = Feed(pairs, self._kept.link(pairs), self.module.count, last)
        # Only of one module, since several process both pairs and drafts.
        of_pairs, of_drafts = (None, None) if groups is None or self.module.count > 1 else groups[1:]
        state = self.module.run(replace(pair_rows(pairs), most_rows=of_pairs), pairs.states, wanted=feed.wanted)
        drafts = [Drafts([], []) for _ in depths]
        tracker = StopTracker(stop_rules, depths.tolist())
        for step in range(1, max(most, self.module.count) + 1):
            # Step j draws draft j from the state of step j, then feeds that draft and that state to step j+1.
            feed.leave(state)
            if step <= most:
                ids, positions = pairs.sequence_ids[going[live]], feed.positions(last) + 2
                tokens, leads, over = self._draw(feed.states(last, state), ids, positions, live, tracker)
                for n, token, lead in zip(live.tolist(), tokens.tolist(), leads, strict=True):
                    drafts[n].token_ids.append(token)
                    drafts[n].confidences.append(lead)
                self._starts.write_each(ids, positions, tokens)
                deeper = np.flatnonzero((depths[live] > step) & ~over)
                live, last = live[deeper], feed.add(live[deeper], last[deeper], tokens[deeper])
                if groups is None and not len(live) and step >= self.module.count:
                    break
            if step < max(most, self.module.count):
                rows, states, number = feed.next(state, live, last)
                state = self.module.run(replace(rows, most_rows=of_drafts), states, number)
        return drafts

    def forget(self, sequence_ids: IntArray) -> None:
        self._kept.forget(sequence_ids)

    def _draw(
        self, state: Tensor, sequence_ids: IntArray, positions: IntArray, live: IntArray, tracker: StopTracker
    ) -> tuple[IntArray, list[float], NDArray[np.bool_]]:
        """Tokens, their leads, and which sequences stop drafting.

        Among ranks with the same rows, the first draws and sends its tokens to the others; the complement of a token
        means that drafting stops after it.
        """
        if not len(sequence_ids):
            return ints(), [], np.zeros(0, dtype=bool)
        part, rows = self.module.logits(state), self._starts.rows(sequence_ids, positions)
        logits = part if self._vocabulary is None else self._vocabulary.on(0, part)
        if logits is not None:
            found, leads = sample_with_leads(logits, rows)
            is_last = torch.tensor(tracker.ended(live, leads.tolist()), device=found.device)
            found = torch.where(is_last, ~found, found)
        else:
            found, leads = torch.zeros(len(state), dtype=torch.int64, device=state.device), state.new_zeros(len(state))
        if self._vocabulary is not None:
            found = self._vocabulary.group.gather(found, "drafts")[0]
        tokens = ints(found.cpu().numpy())
        over = tokens < 0
        return np.where(over, ~tokens, tokens), leads.tolist(), over
