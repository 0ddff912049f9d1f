"""What sampler and drafter remember of each live sequence: how it is sampled, sent once with its first round."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.kernels.cpu.context import DRAW
from outrider.kernels.sampling import sequence_key
from outrider.workers.engine.round import IntArray, SequenceStart, ints
from outrider.workers.speculation.sampling import SampleRow


class Drawn(NamedTuple):
    """A SequenceStart as the compiled kernels take it, but for the position."""

    row: IntArray  # the words of a DRAW
    end_ids: IntArray  # what the row points to

    @classmethod
    def of(cls, start: SequenceStart, eos_token_ids: tuple[int, ...]) -> "Drawn":
        params = start.params
        end_ids = ints((*eos_token_ids, *(params.stop_token_ids or ())))
        row = np.zeros(1, dtype=DRAW)
        row["sequence_key"] = sequence_key(start.seed, start.output_index)
        row["temperature"] = 0 if params.greedy else params.temperature
        row["min_p"], row["top_p"], row["top_k"] = params.min_p, params.top_p, params.top_k
        row["ruled_out"], row["ruled_out_count"] = end_ids.ctypes.data, len(end_ids)
        row["ruled_out_until"] = start.prompt_tokens + params.min_tokens
        return cls(row.view(np.int64), end_ids)


class SequenceStarts:
    """Sampling parameters by sequence id. Knows nothing of tokens."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self.eos_token_ids = eos_token_ids
        self._starts: dict[int, SequenceStart] = {}
        self._drawn: dict[int, Drawn] = {}

    def __getitem__(self, sequence_id: int) -> SequenceStart:
        return self._starts[sequence_id]

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._starts

    def begin(self, begins: Iterable[SequenceStart]) -> None:
        for start in begins:
            self._starts[start.sequence_id] = start
            self._drawn[start.sequence_id] = Drawn.of(start, self.eos_token_ids)

    def end(self, sequence_ids: IntArray) -> None:
        for sequence_id in sequence_ids.tolist():
            self._starts.pop(sequence_id, None)
            self._drawn.pop(sequence_id, None)

    def rows(self, sequence_ids: IntArray, positions: IntArray) -> list[SampleRow]:
        """One row per (sequence, absolute position of the token being chosen)."""
        rows = []
        for sequence_id, position in zip(sequence_ids.tolist(), positions.tolist(), strict=True):
            start = self._starts[sequence_id]
            rows.append(
                SampleRow(
                    params=start.params,
                    seed=start.seed,
                    output_index=start.output_index,
                    position=position,
                    output_tokens=position - start.prompt_tokens,
                    eos_token_ids=self.eos_token_ids,
                )
            )
        return rows

    def draws(self, sequence_ids: IntArray, positions: IntArray) -> NDArray[Any]:
        """As `rows`, for the compiled kernels: DRAW [n], valid as long as the sequences live."""
        drawn = [self._drawn[sequence_id] for sequence_id in sequence_ids.tolist()]
        if not drawn:
            return np.empty(0, dtype=DRAW)
        words = np.concatenate([each.row for each in drawn])
        out = words.view(DRAW)
        out["position"] = positions
        return out
