"""Records each finished sequence's tokens and final hidden states into shards, as training data for drafters.

It wraps the drafter of the first stage and passes every call on to it. It never changes a token and never waits for
the disk. If the disk fails or is full, it logs one warning and stops recording.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from outrider.workers.drafting.drafter import Drafter
from outrider.workers.engine import warm_up
from outrider.workers.serving.harvest_shards import Sample, folder_bytes, write_shard
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import RUNNING, IntArray, Round, SequenceStart, Verdict, ints

log = logging.getLogger("outrider.harvest")

LEAST_TOKENS = 16  # shorter samples are of no use in training
_SHARD_BYTES = 256 << 20


@dataclass(slots=True)
class _Under:
    """A running sequence: the tokens whose hidden states are known, and those states."""

    start: SequenceStart
    token_ids: list[int] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)  # each [rows, hidden]

    def extend(self, position: int, token_ids: list[int], hidden: Tensor) -> bool:
        """Appends the states of the tokens from `position` on; False if states before them are missing.

        A preempted sequence is computed again; then the new states replace the old ones.
        """
        known = len(self.token_ids)
        if position > known:
            return False
        if position < known:
            self.parts = [torch.cat(self.parts)[:position]]
            del self.token_ids[position:]
        self.token_ids += token_ids
        self.parts.append(hidden)
        return True

    def sample(self, last_token: int) -> Sample:
        return Sample(
            token_ids=ints([*self.token_ids, last_token]),
            hidden=torch.cat(self.parts),
            prompt_tokens=self.start.prompt_tokens,
            temperature=float(self.start.params.temperature),
            seed=self.start.seed,
            output_index=self.start.output_index,
        )


class Recorder:
    """Implements Drafter. Sequences whose prompt was partly in the prefix cache, or that were cancelled, are skipped.

    A separate thread writes a shard when it is full, and also when no sequence is running.
    """

    def __init__(
        self,
        behind: Drafter | None,
        folder: Path,
        *,
        max_bytes: int,
        dtype: torch.dtype = torch.bfloat16,
        shard_bytes: int = _SHARD_BYTES,
    ) -> None:
        self._behind, self._folder, self._dtype, self._shard_bytes = behind, folder, dtype, shard_bytes
        self._left = max_bytes - folder_bytes(folder)
        self._under: dict[int, _Under] = {}
        self._finished: list[Sample] = []
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="harvest")
        self._recording = True

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        if self._recording:
            self._under |= {start.sequence_id: _Under(start) for start in round.begins if start.seed != warm_up.SEED}
            self._record(round, verdict, hidden)
            self._write_when_due()
        else:
            self._under, self._finished = {}, []
        return {} if self._behind is None else self._behind.draft(round, verdict, hidden)

    def forget(self, sequence_ids: IntArray) -> None:
        for sequence_id in sequence_ids.tolist():
            self._under.pop(sequence_id, None)
        if self._behind is not None:
            self._behind.forget(sequence_ids)

    def _record(self, round: Round, verdict: Verdict, hidden: Tensor) -> None:
        tokens, gained = round.token_ids.tolist(), verdict.token_ids.tolist()
        hidden = hidden.to(self._dtype, copy=True).cpu()
        emitted, row = list(pairwise(verdict.token_offsets.tolist())), 0
        for s, sequence_id in enumerate(round.sequence_ids.tolist()):
            count, first = int(verdict.accepted_rows[s]), int(round.query_offsets[s])
            states, row = hidden[row : row + count], row + count
            under = self._under.get(sequence_id)
            if under is None or not count:
                continue
            complete = under.extend(int(round.starts[s]), tokens[first : first + count], states)
            ends = bool(verdict.finish[s] != RUNNING)
            if ends or not complete:
                del self._under[sequence_id]
            if ends and complete and len(under.token_ids) >= LEAST_TOKENS:
                self._finished.append(under.sample(gained[emitted[s][1] - 1]))

    def _write_when_due(self) -> None:
        size = sum(sample.bytes for sample in self._finished)
        if not self._finished or (self._under and size < self._shard_bytes):
            return
        samples, self._finished = self._finished, []
        self._left -= size
        if self._left < 0:
            self._give_up(f"{self._folder} has reached harvest_max_gib")
        else:
            self._writer.submit(self._write, samples)

    def _write(self, samples: list[Sample]) -> None:
        try:
            write_shard(self._folder, samples)
        except OSError as error:
            self._give_up(f"cannot write to {self._folder}: {error}")

    def _give_up(self, why: str) -> None:
        log.warning("harvesting ends here: %s", why)
        self._recording = False
