"""Head on a GPU. The inputs of a round's draws reach the device with the round's batch; one copy brings tokens back.

Rows that need logit rules, top_k, top_p or min_p are sampled by the PyTorch implementation (sampling.py).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.gpu.draw import draw
from outrider.workers.model.gpu.upload import Upload, Words
from outrider.workers.sampling.head import Head
from outrider.workers.sampling.row_rules import changes
from outrider.workers.sampling.sample_row import SampleRow
from outrider.workers.sampling.sampling import sample, sample_with_leads
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.rounds.round import FloatArray, IntArray, ints


class MakesLogits(Protocol):
    """A GPU stage."""

    upload: Upload

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, own vocabulary] in float32."""
        ...


class _Draws(NamedTuple):
    """Rows to draw for. `words` for the draw kernel; None if they need the PyTorch implementation."""

    sequence_ids: IntArray
    positions: IntArray
    samples: list[SampleRow]
    words: Words | None


class GpuHead(Head):
    """Inherits `draw` from Head."""

    def __init__(self, stage: MakesLogits, starts: SequenceStarts) -> None:
        self._stage, self._starts = stage, starts
        self._prepared: _Draws | None = None

    def prepare(self, sequence_ids: IntArray, positions: IntArray) -> None:
        samples = self._starts.rows(sequence_ids, positions)
        words = self._stage.upload.with_next(draw_words(samples)) if is_plain(samples) else None
        self._prepared = _Draws(sequence_ids, positions, samples, words)

    @torch.inference_mode()
    def choose(self, logits: Tensor, sequence_ids: IntArray, positions: IntArray) -> Tensor:
        draws = self._draws(sequence_ids, positions)
        if draws.words is None:
            return sample(logits, draws.samples)
        tokens: Tensor = draw(logits, *draw_inputs(draws.words.tensor), 0)[1]
        return tokens

    @torch.inference_mode()
    def draw_with_leads(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[IntArray, FloatArray]:
        draws = self._draws(sequence_ids, positions)
        logits = self.logits(hidden, rows)
        if draws.words is not None:
            tokens, leads = tokens_and_leads(*draw(logits, *draw_inputs(draws.words.tensor), 0))
        else:
            found, led = sample_with_leads(logits, draws.samples)
            tokens, leads = ints(found.cpu().numpy()), led.cpu().numpy()
        self._starts.write_each(sequence_ids, positions, tokens)
        return tokens, leads

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: IntArray) -> Tensor:
        if len(rows) != hidden.shape[0] or (rows != np.arange(len(rows))).any():
            hidden = hidden.index_select(0, self._stage.upload.now(rows).tensor)
        return self._stage.logits(hidden)

    def _draws(self, sequence_ids: IntArray, positions: IntArray) -> _Draws:
        """The prepared draws if they are of these rows, else new ones."""
        made, self._prepared = self._prepared, None
        if made is not None and np.array_equal(made[:2], (sequence_ids, positions)):
            return made
        samples = self._starts.rows(sequence_ids, positions)
        words = self._stage.upload.now(draw_words(samples)) if is_plain(samples) else None
        return _Draws(sequence_ids, positions, samples, words)


def is_plain(rows: Sequence[SampleRow]) -> bool:
    """Whether the kernel can sample all rows: temperature and noise only."""
    return not any(changes(row) or (not row.params.greedy and _sorts(row)) for row in rows)


def _sorts(row: SampleRow) -> bool:
    params = row.params
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def draw_words(samples: Sequence[SampleRow]) -> IntArray:
    """The samples' temperatures (bits of float64, 0: greedy), then their noise keys, [2 n]."""
    temperatures = np.array([0.0 if row.params.greedy else row.params.temperature for row in samples])
    keys = np.array([0 if row.params.greedy else row.noise_key for row in samples], dtype=np.int64)
    return np.concatenate([temperatures.view(np.int64), keys])


def draw_inputs(words: Tensor) -> tuple[Tensor, Tensor]:
    """Temperatures [n] float64 and noise keys [n] int64, of draw_words on the device."""
    temperatures, keys = torch.split(words, [len(words) // 2] * 2)
    return temperatures.view(torch.float64), keys


def tokens_and_leads(best: Tensor, ids: Tensor) -> tuple[IntArray, FloatArray]:
    """Copies the draw kernel's outputs `best` [n, 2] and `ids` [n] to the host at once."""
    packed = torch.cat([best, ids.view(torch.float64)[:, None]], dim=1).cpu().numpy()
    return ints(packed[:, 2].copy().view(np.int64)), _leads(packed)


def _leads(packed: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(packed[:, 0] - packed[:, 1], nan=0.0, posinf=np.inf)
