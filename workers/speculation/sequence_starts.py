"""What sampler and drafter remember of each live sequence: how it is sampled, sent once with its first round."""

from collections.abc import Iterable

from outrider.workers.engine.round import IntArray, SequenceStart
from outrider.workers.speculation.sampling import SampleRow


class SequenceStarts:
    """Sampling parameters by sequence id. Knows nothing of tokens."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self.eos_token_ids = eos_token_ids
        self._starts: dict[int, SequenceStart] = {}

    def __getitem__(self, sequence_id: int) -> SequenceStart:
        return self._starts[sequence_id]

    def __len__(self) -> int:
        return len(self._starts)

    def begin(self, begins: Iterable[SequenceStart]) -> None:
        self._starts.update((start.sequence_id, start) for start in begins)

    def end(self, sequence_ids: IntArray) -> None:
        for sequence_id in sequence_ids.tolist():
            self._starts.pop(sequence_id, None)

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
