"""What a separate model's cache holds: token i in slot i, whatever was drafted, rejected, shared or begun anew."""

import numpy as np
import pytest
import torch
from torch import Tensor

from outrider.workers.drafting.separate_model import SeparateModel, SeparateModelDrafter
from outrider.workers.model.batch import Batch
from outrider.workers.model.rows import Rows
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.requests.sampling_params import DRAFT_MODEL, SamplingParams
from outrider.workers.types.rounds.round import (
    LENGTH,
    RUNNING,
    FloatArray,
    IntArray,
    Round,
    SequenceStart,
    Verdict,
    ints,
)

BLOCK, VOCAB = 4, 1000
HIDDEN = torch.zeros(64, 1)


class RecordingStage:
    """In place of all layers: remembers which token was written to which slot, and at which position it was read."""

    cache_bytes_per_block = 0

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.rows: list[int] = []

    def allocate_cache(self, num_blocks: int) -> None: ...

    def run(self, rows: Rows, hidden: Tensor | None) -> Tensor:
        assert hidden is None
        assert not rows.first_slots.any()
        assert (rows.rope_positions == rows.cache_positions).all()
        batch = Batch.of(rows, BLOCK)
        writing = batch.write_rows if batch.write_rows is not None else torch.arange(batch.rows)
        self.slots.update(zip(batch.write_slots.tolist(), batch.token_ids[writing].tolist(), strict=True))
        self.rows.append(batch.rows)
        return batch.token_ids[:, None].float()


class CountingHead:
    """Draws token + 1, and says how sure it is by the position that it was asked for."""

    def draw(self, hidden: Tensor, rows: IntArray, ids: IntArray, positions: IntArray) -> tuple[Tensor, IntArray]:
        raise AssertionError("a drafter draws with leads")

    def draw_with_leads(
        self, hidden: Tensor, rows: IntArray, ids: IntArray, positions: IntArray
    ) -> tuple[IntArray, FloatArray]:
        return ints(hidden[torch.from_numpy(rows), 0].numpy() + 1) % VOCAB, positions.astype(np.float64)


@pytest.fixture
def stage() -> RecordingStage:
    return RecordingStage()


def a_drafter(stage: RecordingStage) -> SeparateModelDrafter:
    return SeparateModelDrafter(SeparateModel(stage, CountingHead()), SequenceStarts(()), BLOCK)


def a_round(
    tokens: list[int], start: int, table: list[int], *, drafts: int = 0, steps: int = 0, write_from: int = 0,
    sequence_id: int = 1,
) -> Round:  # fmt: skip
    params = SamplingParams(temperature=0)
    begin = SequenceStart(sequence_id=sequence_id, output_index=0, seed=0, prompt_tokens=1, params=params)
    return Round(
        sequence_ids=ints([sequence_id]),
        query_offsets=ints([0, len(tokens)]),
        token_ids=ints(tokens),
        starts=ints([start]),
        write_from=ints([write_from]),
        sample_counts=ints([1 + drafts]),
        next_token_ids=ints([0]),
        block_offsets=ints([0, len(table)]),
        block_ids=ints(table),
        draft_steps=ints([steps]),
        follows=ints([1]),
        followed_from=ints([1]),
        begins=(begin,),
    )


def says(tokens: list[int], *, rows: int, finish: int = RUNNING) -> Verdict:
    return Verdict(
        token_offsets=ints([0, len(tokens)]),
        token_ids=ints(tokens),
        accepted_rows=ints([rows]),
        drafts_accepted=ints([len(tokens) - 1]),
        finish=ints([finish]),
    )


def held(stage: RecordingStage, table: list[int], tokens: int) -> list[int | None]:
    return [stage.slots.get(table[p // BLOCK] * BLOCK + p % BLOCK) for p in range(tokens)]


def test_a_prompt_is_held_from_its_first_token_on_and_drafts_follow_it(stage: RecordingStage) -> None:
    table = [5, 2, 7]

    drafts = a_drafter(stage).draft(a_round([10, 11, 12], 0, table, steps=3), says([50], rows=3), HIDDEN[:3])[1]

    assert drafts.token_ids == [51, 52, 53]
    assert drafts.drafter == DRAFT_MODEL
    assert drafts.confidences == [4, 5, 6]  # the positions that the drafts stand at
    assert held(stage, table, 6) == [10, 11, 12, 50, 51, 52]
    assert stage.rows == [4, 1, 1]


def test_rejected_drafts_are_written_over_by_what_was_said_instead(stage: RecordingStage) -> None:
    drafter, table = a_drafter(stage), [5, 2, 7]
    drafter.draft(a_round([10, 11, 12], 0, table, steps=3), says([50], rows=3), HIDDEN[:3])

    drafter.draft(a_round([50, 51, 52, 53], 3, table, drafts=3, steps=2), says([51, 90], rows=2), HIDDEN[:2])

    assert held(stage, table, 7) == [10, 11, 12, 50, 51, 90, 91]


def test_a_shared_prefix_is_read_and_not_written(stage: RecordingStage) -> None:
    """A hit of four tokens computes the fourth again as a query; what others hold of it stays theirs."""
    table = [5, 2]
    stage.slots = {5 * BLOCK + n: -1 for n in range(BLOCK)}

    drafter = a_drafter(stage)
    drafter.draft(a_round([13, 14], 3, table, steps=1, write_from=4), says([50], rows=2), HIDDEN[:2])

    assert held(stage, table, 6) == [-1, -1, -1, -1, 14, 50]


def test_a_sequence_that_was_preempted_is_followed_from_the_start_again(stage: RecordingStage) -> None:
    drafter = a_drafter(stage)
    drafter.draft(a_round([10, 11], 0, [5], steps=1), says([50], rows=2), HIDDEN[:2])

    drafter.draft(a_round([10, 11, 50], 0, [8, 9], steps=1), says([60], rows=3), HIDDEN[:3])

    assert held(stage, [8, 9], 4) == [10, 11, 50, 60]


def test_what_waits_is_written_when_the_sequence_ends(stage: RecordingStage) -> None:
    """Its blocks may be found by their hash from then on."""
    drafter = a_drafter(stage)
    drafter.draft(a_round([10], 0, [5]), says([50], rows=1), HIDDEN[:1])
    assert stage.rows == []

    drafter.draft(a_round([50], 1, [5]), says([60], rows=1, finish=LENGTH), HIDDEN[:1])

    assert held(stage, [5], 3) == [10, 50, 60]
