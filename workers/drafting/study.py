"""Drafting and verification with rules other than coupled sampling, in PyTorch and one stage. For experiments.

Drafts are drawn from the drafter's distribution with their own noise; the head reads that distribution. Every round
uses new noise, for drafting and for verification.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.sampling import gumbel_noise, key_tensor, noise_bits, row_key, sequence_key
from outrider.workers.drafting.draft_model import DraftRequest
from outrider.workers.drafting.pairs import Pairs
from outrider.workers.drafting.stopping import StopTracker
from outrider.workers.drafting.torch_draft_model import TorchDraftModel
from outrider.workers.model.deepseek import Stage
from outrider.workers.model.mtp import MtpModules
from outrider.workers.sampling.rules import Floats, last_distribution, stop_probabilities
from outrider.workers.sampling.sampling import SampleRow, transform
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.sampling.torch_head import TorchHead
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray, ints

_DRAFTING, _STOPPING, _LAST = 0x5EED_D4AF, 0x5EED_5709, 0x5EED_1A57  # noise streams, distinct from the model's
_MOST = 32  # tokens of a round and sequence


@dataclass(slots=True)
class Block:
    """The drafts of one sequence in one round: first position, tokens, and the distributions they were drawn from."""

    start: int
    token_ids: list[int] = field(default_factory=list)
    distributions: list[Floats] = field(default_factory=list)  # [vocab] each


Blocks = dict[int, Block]  # by sequence id


class StudyDraftModel(TorchDraftModel):
    """Implements DraftModel: draws with its own noise, and stores its distributions in `blocks`."""

    def __init__(self, modules: MtpModules, starts: SequenceStarts, blocks: Blocks) -> None:
        super().__init__(modules, starts)
        self._blocks = blocks

    def draft(self, pairs: Pairs, wanted: DraftRequest) -> list[Drafts]:
        """Makes all drafts, without early stopping: acceptance estimates assume coupled sampling."""
        drafted = set(pairs.sequence_ids[wanted.entries].tolist())
        for sequence_id in [i for i in self._blocks if i in drafted or i not in self._starts]:
            del self._blocks[sequence_id]
        return super().draft(pairs, wanted._replace(stop_rules=None))

    def _draw(
        self, state: Tensor, sequence_ids: IntArray, positions: IntArray, live: IntArray, tracker: StopTracker
    ) -> tuple[IntArray, list[float], NDArray[np.bool_]]:
        rows = self._starts.rows(sequence_ids, positions)
        scores = transform(self.module.logits(state).cpu(), rows)  # this module computes on the host
        tokens = []
        for sequence_id, row, own in zip(sequence_ids.tolist(), rows, scores, strict=True):
            block = self._blocks.setdefault(sequence_id, Block(row.position))
            noise = 0.0 if row.params.greedy else _noise(row, _DRAFTING, block.start, len(block.token_ids), len(own))
            tokens.append(int((own + noise).argmax()))
            block.token_ids.append(tokens[-1])
            block.distributions.append(own.softmax(dim=-1).numpy())
        return ints(tokens), [0.0] * len(tokens), np.zeros(len(tokens), dtype=bool)


class StudyHead(TorchHead):
    """Implements Head: its draws are the drafts accepted under `rule`, and the token after them."""

    def __init__(self, stage: Stage, starts: SequenceStarts, rule: str, blocks: Blocks) -> None:
        super().__init__(stage, starts)
        self._rule, self._blocks = rule, blocks

    @torch.inference_mode()
    def draw(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[Tensor, Tensor]:
        logits, targets = super().draw(hidden, rows, sequence_ids, positions)
        samples = self._starts.rows(sequence_ids, positions)
        for sequence_id, first, end in _spans(sequence_ids):
            block = self._blocks.get(sequence_id)
            if block is None or end - first < 2 or samples[first].params.greedy:
                continue
            scores = transform(logits[first:end].cpu(), samples[first:end])
            targets[first:end] = torch.tensor(self._verified(block, scores, samples[first]))
        return logits, targets

    def _verified(self, block: Block, scores: Tensor, row: SampleRow) -> list[int]:
        """A token for every row: the accepted drafts, the token after them, then draws from the target."""
        drafts = block.token_ids[: len(scores) - 1]
        target, draft = scores.softmax(dim=-1).numpy(), np.stack(block.distributions[: len(drafts)])
        stops = stop_probabilities(self._rule, target, draft, drafts)
        chance = float((noise_bits(_keys(row, _STOPPING, block.start, 0), 1)[0, 0].double() + 0.5) * 2.0**-52)
        accepted = min(int(np.searchsorted(np.cumsum(stops), chance, side="right")), len(drafts))
        chosen = list(drafts[:accepted])
        for place in range(accepted, len(scores)):
            last = (
                last_distribution(self._rule, target, draft, drafts, accepted) if place == accepted else target[place]
            )
            noise = _noise(row, _LAST, block.start, place, len(last))
            chosen.append(int((torch.from_numpy(last).log() + noise).argmax()))
        return chosen


def _spans(sequence_ids: IntArray) -> Iterator[tuple[int, int, int]]:
    """First and end row of each sequence."""
    at = 0
    for sequence_id, own in groupby(sequence_ids.tolist()):
        first, at = at, at + len(list(own))
        yield sequence_id, first, at


def _noise(row: SampleRow, stream: int, start: int, place: int, vocab: int) -> Tensor:
    return gumbel_noise(_keys(row, stream, start, place), vocab)[0]


def _keys(row: SampleRow, stream: int, start: int, place: int) -> Tensor:
    """The noise key of a place in the round whose drafts begin at position `start`; unique in the sequence."""
    key = row_key(sequence_key(row.seed ^ stream, row.output_index), start * _MOST + place)
    return key_tensor([key], torch.device("cpu"))
