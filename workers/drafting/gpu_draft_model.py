"""Drafting on a GPU: all steps of a draft are enqueued at once, each feeding the next on the device.

The host waits once, for all tokens and their leads. Where drafting ends early (stop rules) is decided then: steps that
would not have been made are dropped, and what they left in the drafter's cache is written over by the next call.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.gpu.draw import draw
from outrider.workers.drafting.draft_model import Wanted
from outrider.workers.drafting.pairs import Pairs, one_each, pair_rows
from outrider.workers.drafting.stopping import Drafted
from outrider.workers.drafting.torch_draft_model import TorchDraftModel
from outrider.workers.model.gpu_stage import GpuModules
from outrider.workers.parallel.sharing import Columns
from outrider.workers.sampling.gpu_head import is_plain, on_device, tokens_and_leads
from outrider.workers.sampling.sample_row import SampleRow
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import FloatArray, IntArray, ints


class GpuDraftModel(TorchDraftModel):
    """Implements DraftModel; as torch's path, step by step, where rules or several modules ask for it."""

    def __init__(self, modules: GpuModules, starts: SequenceStarts, vocabulary: Columns | None = None) -> None:
        super().__init__(modules, starts, vocabulary)

    def use(self, module: object) -> None:
        assert isinstance(module, GpuModules), "modules of the stage that runs"
        self.module = module

    @torch.inference_mode()
    def draft(self, pairs: Pairs, wanted: Wanted) -> list[Drafts]:
        module, deepest = self.module, np.argsort(-wanted.depths, kind="stable")  # so that those that go on come first
        entries, depths = wanted.entries[deepest], wanted.depths[deepest]
        going = [int((depths > step).sum()) for step in range(int(depths.max(initial=0)))]  # who has draft `step`
        samples = self._samples(pairs, entries, going)
        if not isinstance(module, GpuModules) or module.count > 1 or wanted.steps is not None or not is_plain(samples):
            return super().draft(pairs, wanted)
        last = pairs.last_rows[entries]
        state = module.run(pair_rows(pairs), pairs.hidden, wanted=last)
        if not going:
            return [Drafts([], []) for _ in depths]
        feeds = [
            one_each(pairs, entries[:count], np.zeros_like(last[:count]), pairs.positions[last[:count]] + step)
            for step, count in enumerate(going[1:], start=1)
        ]
        batches = module.decoder.batches(feeds)
        _, temperatures, keys = on_device(ints(), samples, state.device)
        best, ids = list[Tensor](), list[Tensor]()
        for step, begin in enumerate(accumulate(going[:-1], initial=0)):
            own = slice(begin, begin + going[step])
            drawn = self._best(module.logits(state[: going[step]]), temperatures[own], keys[own])
            best.append(drawn[0])
            ids.append(drawn[1])
            if step < len(batches):
                count = going[step + 1]
                state = module.forward(replace(batches[step], token_ids=drawn[1][:count]), state[:count])
        tokens, leads = tokens_and_leads(torch.cat(best), torch.cat(ids))
        stop_rules = None if wanted.stop_rules is None else wanted.stop_rules[deepest]
        made = _made(depths, going, stop_rules, tokens, leads)
        return [made[place] for place in np.argsort(deepest).tolist()]

    def _samples(self, pairs: Pairs, entries: IntArray, going: Sequence[int]) -> list[SampleRow]:
        """What decides each draw, step by step."""
        ids, positions = pairs.sequence_ids[entries], pairs.positions[pairs.last_rows[entries]] + 2
        return [
            row for step, count in enumerate(going) for row in self._starts.rows(ids[:count], positions[:count] + step)
        ]

    def _best(self, logits: Tensor, temperatures: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The two best scores [n, 2] and the best's ids [n], of the whole vocabulary: on every rank with a slice."""
        if self._vocabulary is None:
            best, ids = draw(logits, temperatures, keys, 0)
            return best, ids
        group, cut = self._vocabulary.group, self._vocabulary.cut
        best, ids = draw(logits, temperatures, keys, cut.begin(group.rank))
        every = group.gather(torch.cat([best, ids.view(torch.float64)[:, None]], dim=1), "drafts")  # [ranks, n, 3]
        winner = every[..., 0].max(dim=0).indices[None]  # the first of equals: lower ranks have lower ids
        best = every[..., :2].transpose(1, 2).flatten(0, 1).topk(2, dim=0).values.T  # [n, 2] of all ranks' two
        return best, every[..., 2].gather(0, winner)[0].view(torch.int64)


def _made(
    depths: IntArray, going: Sequence[int], stop_rules: FloatArray | None, tokens: IntArray, leads: FloatArray
) -> list[Drafts]:
    """The drafts that would have been made one by one: `tokens` and `leads` are those of step 0, then of step 1, ..."""
    drafts, drafted = [Drafts([], []) for _ in depths], Drafted(stop_rules, depths.tolist())
    live = np.arange(len(depths))[: going[0]]
    for step, begin in enumerate(accumulate(going[:-1], initial=0)):
        for n in live.tolist():
            drafts[n].token_ids.append(int(tokens[begin + n]))
            drafts[n].confidences.append(float(leads[begin + n]))
        over = np.array(drafted.over(live, leads[begin + live].tolist()), dtype=bool)
        live = live[(depths[live] > step + 1) & ~over]
        if not len(live):
            break
    return drafts
