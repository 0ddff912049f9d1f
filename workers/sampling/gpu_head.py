"""Head on a GPU: what decides a draw goes to the device in one copy, and tokens come back in another.

Rows with rules, or that sort the vocabulary (top_k, top_p, min_p), are drawn by torch's path (sampling.py).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from outrider.kernels.gpu.draw import draw
from outrider.workers.sampling.row_rules import changes
from outrider.workers.sampling.sample_row import SampleRow
from outrider.workers.sampling.sampling import sample, sample_with_leads
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.round import FloatArray, IntArray, ints


class MakesLogits(Protocol):
    """A stage or module of a GPU."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, own vocabulary] in float32."""
        ...


class GpuHead:
    """Implements Head."""

    def __init__(self, stage: MakesLogits, starts: SequenceStarts) -> None:
        self._stage, self._starts = stage, starts

    @torch.inference_mode()
    def draw(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[Tensor, IntArray]:
        samples = self._starts.rows(sequence_ids, positions)
        if not is_plain(samples):
            logits = self.logits(hidden, rows)
            return logits, ints(sample(logits, samples).cpu().numpy())
        places, temperatures, keys = on_device(rows, samples, hidden.device)
        logits = self._stage.logits(_chosen(hidden, rows, places))
        return logits, ints(draw(logits, temperatures, keys, 0)[1].cpu().numpy())

    @torch.inference_mode()
    def choose(self, logits: Tensor, sequence_ids: IntArray, positions: IntArray) -> IntArray:
        samples = self._starts.rows(sequence_ids, positions)
        if not is_plain(samples):
            return ints(sample(logits, samples).cpu().numpy())
        _, temperatures, keys = on_device(ints(), samples, logits.device)
        return ints(draw(logits, temperatures, keys, 0)[1].cpu().numpy())

    @torch.inference_mode()
    def draw_with_leads(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[IntArray, FloatArray]:
        samples = self._starts.rows(sequence_ids, positions)
        logits = self.logits(hidden, rows)
        if is_plain(samples):
            _, temperatures, keys = on_device(ints(), samples, hidden.device)
            tokens, leads = tokens_and_leads(*draw(logits, temperatures, keys, 0))
        else:
            found, led = sample_with_leads(logits, samples)
            tokens, leads = ints(found.cpu().numpy()), led.cpu().numpy()
        self._starts.write_each(sequence_ids, positions, tokens)
        return tokens, leads

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: IntArray) -> Tensor:
        places = torch.from_numpy(rows).to(hidden.device, non_blocking=True)
        return self._stage.logits(_chosen(hidden, rows, places))


def _chosen(hidden: Tensor, rows: IntArray, places: Tensor) -> Tensor:
    """Those rows; `places` are they on the device."""
    whole = len(rows) == hidden.shape[0] and bool((rows == np.arange(len(rows))).all())
    return hidden if whole else hidden.index_select(0, places)


def is_plain(rows: Sequence[SampleRow]) -> bool:
    """Whether the kernel can draw them: temperature and noise only."""
    return not any(changes(row) or (not row.params.greedy and _sorts(row)) for row in rows)


def _sorts(row: SampleRow) -> bool:
    params = row.params
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def on_device(rows: IntArray, samples: Sequence[SampleRow], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`rows`, and of the samples temperatures in float64 (0: greedy) and noise keys, in one copy."""
    temperatures = np.array([0.0 if row.params.greedy else row.params.temperature for row in samples])
    keys = np.array([0 if row.params.greedy else row.noise_key for row in samples], dtype=np.int64)
    flat = torch.from_numpy(np.concatenate([rows, temperatures.view(np.int64), keys])).to(device, non_blocking=True)
    places, bits, on_gpu = torch.split(flat, [len(rows), len(samples), len(samples)])
    return places, bits.view(torch.float64), on_gpu


def tokens_and_leads(best: Tensor, ids: Tensor) -> tuple[IntArray, FloatArray]:
    """On the host, in one copy: `best` [n, 2] and `ids` [n] as the kernel leaves them."""
    packed = torch.cat([best, ids.view(torch.float64)[:, None]], dim=1).cpu().numpy()
    return ints(packed[:, 2].copy().view(np.int64)), _leads(packed)


def _leads(packed: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(packed[:, 0] - packed[:, 1], nan=0.0, posinf=np.inf)
