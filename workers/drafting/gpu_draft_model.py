"""Drafting on a GPU: all steps of a draft are enqueued at once, and each step's token feeds the next on the device.

The host waits once, for all tokens and their leads. Stop rules are applied then: drafts after the stop are dropped, and
the next call overwrites their entries in the drafter's cache. Small calls run as CUDA graphs (gpu_draft_graphs.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.gpu.draw import draw
from outrider.workers.drafting.draft_model import AllGroups, DraftRequest
from outrider.workers.drafting.gpu_draft_graphs import DraftGraphs, Drawn, chosen_rows
from outrider.workers.drafting.pairs import Pairs, one_each, pair_rows
from outrider.workers.drafting.stopping import StopTracker
from outrider.workers.drafting.torch_draft_model import TorchDraftModel
from outrider.workers.model.gpu.batch import GpuBatch
from outrider.workers.model.gpu.stage import GpuModules
from outrider.workers.model.rows import Rows
from outrider.workers.parallel.sharing import Columns
from outrider.workers.sampling.gpu_head import draw_inputs, draw_words, is_plain, tokens_and_leads
from outrider.workers.sampling.sample_row import SampleRow
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import FloatArray, IntArray


class GpuDraftModel(TorchDraftModel):
    """Implements DraftModel. Logit rules and several modules run in PyTorch, which waits for every step."""

    def __init__(self, modules: GpuModules, starts: SequenceStarts, vocabulary: Columns | None = None) -> None:
        super().__init__(modules, starts, vocabulary)
        self._graphs: DraftGraphs | None = None
        self.use(modules)

    def use(self, module: object) -> None:
        assert isinstance(module, GpuModules), "modules of the stage that runs"
        self.module = self._gpu_module = module
        self._graphs = None
        if module.in_graphs:
            self.use_graphs()

    def use_graphs(self) -> None:
        """Runs small calls as CUDA graphs from now on."""
        self._graphs = DraftGraphs(self._step, self._loop, self._gpu_module.decoder)

    @torch.inference_mode()
    def draft(self, pairs: Pairs, wanted: DraftRequest) -> list[Drafts]:
        module = self._gpu_module
        groups = wanted.groups if module.decoder.shares_rows else None  # others' passes do not matter to this group
        deepest = np.argsort(-wanted.depths, kind="stable")  # deepest first: each step's entries are a prefix
        entries, depths = wanted.entries[deepest], wanted.depths[deepest]
        going = [int((depths > step).sum()) for step in range(int(depths.max(initial=0)))]  # entries per step
        samples = self._samples(pairs, entries, going)
        plain = all(map(is_plain, samples))
        if module.count > 1 or not plain or (groups is not None and not going):
            return super().draft(pairs, wanted._replace(groups=groups))
        last = pairs.last_rows[entries]
        if not going:
            self._fill(pairs, last)
            return [Drafts([], []) for _ in depths]
        if groups is not None:
            rest = groups.steps - len(going)
            going, samples = going + [0] * rest, samples + [[]] * rest
        rows = _passes(pairs, entries, going, groups)
        run = self._run if self._graphs is None or not self._graphs.fits(rows) else self._graphs.run
        tokens, leads = tokens_and_leads(*run(pairs, rows, last, [draw_words(each) for each in samples]))
        stop_rules = None if wanted.stop_rules is None else wanted.stop_rules[deepest]
        made = _made(depths, going, stop_rules, tokens, leads)
        return [made[place] for place in np.argsort(deepest).tolist()]

    def _fill(self, pairs: Pairs, last: IntArray) -> None:
        """Only writes the pairs to the cache."""
        if not len(pairs):
            return
        decoder = self._gpu_module.decoder
        chosen = decoder.upload.with_next(chosen_rows(pairs))
        batch = decoder.batch(pair_rows(pairs), last)
        self._gpu_module.forward(batch, _chosen(pairs.hidden, chosen.tensor))

    def _run(
        self, pairs: Pairs, passes: Sequence[Rows], last: IntArray, words: Sequence[IntArray]
    ) -> tuple[Tensor, Tensor]:
        """The same as DraftGraphs.run, without CUDA graphs."""
        decoder, arrays = self._gpu_module.decoder, [chosen_rows(pairs), *words]
        uploaded = decoder.upload.with_next(np.concatenate(arrays))
        first, *batches = decoder.batches(passes, [last, *[None] * (len(passes) - 1)])
        chosen, own, *rest = torch.split(uploaded.tensor, [len(each) for each in arrays])
        drawn = self._step(first, _chosen(pairs.hidden, chosen), own)
        best, ids = self._loop(batches, drawn, rest)
        return torch.cat([drawn.best, *best]), torch.cat([drawn.ids, *ids])

    def _step(self, batch: GpuBatch, hidden: Tensor, words: Tensor) -> Drawn:
        """One pass of the module, and a draw from each wanted row's state. `words` [2 n] as draw_words makes them."""
        state = self._gpu_module.forward(batch, hidden)
        if not len(state):  # only other data groups have drafts left
            return Drawn(state, state.new_empty(0, 2, dtype=torch.float64), words.new_empty(0, dtype=torch.int64))
        return Drawn(state, *self._best(self._gpu_module.logits(state), *draw_inputs(words)))

    def _loop(
        self, batches: Sequence[GpuBatch], drawn: Drawn, words: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Further steps: each feeds the draft and the state before it to the module. Scores and ids, by step."""
        best, ids = list[Tensor](), list[Tensor]()
        for batch, own in zip(batches, words, strict=True):
            drawn = self._step(replace(batch, token_ids=drawn.ids[: batch.rows]), drawn.state[: batch.rows], own)
            best.append(drawn.best)
            ids.append(drawn.ids)
        return best, ids

    def _samples(self, pairs: Pairs, entries: IntArray, going: Sequence[int]) -> list[list[SampleRow]]:
        """The sampling inputs of each draw, by step."""
        ids, positions = pairs.sequence_ids[entries], pairs.positions[pairs.last_rows[entries]] + 2
        return [self._starts.rows(ids[:count], positions[:count] + step) for step, count in enumerate(going)]

    def _best(self, logits: Tensor, temperatures: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The two best scores [n, 2] and the best token [n] of the whole vocabulary, on every rank with a slice."""
        if self._vocabulary is None:
            best, ids = draw(logits, temperatures, keys, 0)
            return best, ids
        group, cut = self._vocabulary.group, self._vocabulary.cut
        best, ids = draw(logits, temperatures, keys, cut.begin(group.rank))
        every = self._vocabulary.each(torch.cat([best, ids.view(torch.float64)[:, None]], dim=1))  # [ranks, n, 3]
        winner = every[..., 0].max(dim=0).indices[None]  # ties go to the lowest rank, which has lower ids
        best = every[..., :2].transpose(1, 2).flatten(0, 1).topk(2, dim=0).values.T  # [n, 2] of all ranks' two
        return best, every[..., 2].gather(0, winner)[0].view(torch.int64)


def _passes(pairs: Pairs, entries: IntArray, going: Sequence[int], groups: AllGroups | None) -> list[Rows]:
    """The rows of each pass: all pairs, then a draft of each of the first `going` entries, by step."""
    last = pairs.positions[pairs.last_rows[entries]]
    later = [
        one_each(pairs, entries[:count], np.zeros_like(entries[:count]), last[:count] + step)
        for step, count in enumerate(going[1:], start=1)
    ]
    first = pair_rows(pairs)
    if groups is None:
        return [first, *later]
    return [replace(first, most_rows=groups.pairs), *(replace(each, most_rows=groups.drafts) for each in later)]


def _chosen(hidden: Tensor, rows: Tensor) -> Tensor:
    """Rows `rows` [N] of `hidden`; all if empty, as in `chosen_rows`."""
    return hidden.index_select(0, rows) if len(rows) else hidden


def _made(
    depths: IntArray, going: Sequence[int], stop_rules: FloatArray | None, tokens: IntArray, leads: FloatArray
) -> list[Drafts]:
    """Applies depths and stop rules to the drafts. `tokens` and `leads`: those of step 0, then of step 1, .."""
    drafts, tracker = [Drafts([], []) for _ in depths], StopTracker(stop_rules, depths.tolist())
    live = np.arange(len(depths))[: going[0]]
    for step, begin in enumerate(accumulate(going[:-1], initial=0)):
        for n in live.tolist():
            drafts[n].token_ids.append(int(tokens[begin + n]))
            drafts[n].confidences.append(float(leads[begin + n]))
        over = np.array(tracker.ended(live, leads[begin + live].tolist()), dtype=bool)
        live = live[(depths[live] > step + 1) & ~over]
        if not len(live):
            break
    return drafts
