"""Batches of harvested text: windows of equal length, padded at the end. A batch depends on seed and step only."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outrider.workers.serving.harvest_shards import Harvest, Sample
from outrider.workers.training.distill.prompts import is_held_out
from outrider.workers.types.errors import OutriderError


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """`rows` windows of `n` starts, for drafts `depth` deep."""

    token_ids: Tensor  # int64 [rows, n + depth]
    hidden: Tensor  # [rows, n + depth, hidden]: the model's state of every token
    counted: Tensor  # bool [rows, n]: the starts whose drafts count


@dataclass(frozen=True, slots=True)
class _BatchWindow:
    sample: int
    first: int  # token


class Batches:
    """Draws windows from one part of a harvest: training or held-out."""

    def __init__(self, harvest: Harvest, *, window: int, depth: int, held_out: bool, share: float, seed: int) -> None:
        """`share` of the prompts is held out. OutriderError if this part has no text that is long enough."""
        self._harvest, self._window, self._depth, self._seed = harvest, window, depth, seed
        self._outlines = harvest.outlines
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)
        mine = [
            index
            for index, sample in enumerate(self._outlines)
            if is_held_out(_prompt(sample), share) == held_out and _starts(sample, depth) > 0
        ]
        self._windows = [_BatchWindow(index, first) for index in mine for first in self._firsts(self._outlines[index])]
        if not self._windows:
            half = "held-out" if held_out else "training"
            raise OutriderError(f"{harvest.folder} has no {half} text: harvest more prompts, or longer continuations")

    def __len__(self) -> int:
        """The total number of windows."""
        return len(self._windows)

    def batch(self, step: int, rows: int, rank: int = 0, world_size: int = 1) -> TrainingBatch:
        """This rank's share of batch `step` with `rows` windows. Every window is used once before one repeats."""
        places = np.arange(step * rows, (step + 1) * rows)[rank::world_size]
        return self.windows([self._at(int(place)) for place in places])

    def windows(self, numbers: list[int]) -> TrainingBatch:
        parts = [self._read(self._windows[number]) for number in numbers]
        return TrainingBatch(*(torch.stack(column) for column in zip(*parts, strict=True)))

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, len(self._windows))
        if epoch != self._epoch:
            self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._windows))
            self._epoch = epoch
        return int(self._order[index])

    def _firsts(self, sample: Sample) -> list[int]:
        """Window positions such that every start is counted once, with half a window of context if available."""
        firsts = [max(0, sample.prompt_tokens - 1 - self._window // 2)]
        while firsts[-1] + self._window < len(sample.token_ids) - 1 - self._depth:
            firsts.append(firsts[-1] + self._window // 2)
        return firsts

    def _read(self, window: _BatchWindow) -> tuple[Tensor, Tensor, Tensor]:
        sample, length = self._outlines[window.sample], self._window + self._depth
        end = min(window.first + length, len(sample.token_ids) - 1)  # the last token's state is not known
        count = end - window.first
        token_ids = torch.zeros(length, dtype=torch.int64)
        token_ids[:count] = torch.from_numpy(sample.token_ids[window.first : end])
        states = self._harvest.hidden(window.sample, window.first, count)
        hidden = torch.zeros(length, states.shape[1], dtype=states.dtype)
        hidden[:count] = states
        starts = torch.arange(self._window) + window.first
        context = self._window // 2 if window.first else 0
        counted = (starts >= max(sample.prompt_tokens - 1, window.first + context)) & (starts < end - self._depth)
        return token_ids, hidden, counted


def _prompt(sample: Sample) -> list[int]:
    return [int(token) for token in sample.token_ids[: sample.prompt_tokens]]


def _starts(sample: Sample, depth: int) -> int:
    """Starts of the continuation with a target for every step: the last token's state is not known."""
    return len(sample.token_ids) - 1 - depth - (sample.prompt_tokens - 1)
