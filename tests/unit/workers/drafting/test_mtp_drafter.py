"""What the drafter's cache holds after any mixture of drafting and waiting, with a module that only records."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from outrider.workers.drafting.mtp_drafter import MtpDrafter
from outrider.workers.drafting.torch_draft_model import TorchDraftModel
from outrider.workers.model.batch import Batch
from outrider.workers.model.rows import Rows
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.round import IntArray, Round, SequenceStart, Verdict, ints

BLOCK = 4
VOCAB = 64


class RecordingModules:
    """In place of MtpModules: remembers which token was written to which slot, and drafts token + 1."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.steps: list[int] = []  # rows

    count = 1

    def run(self, rows: Rows, hidden: Tensor, module: int = 0, wanted: IntArray | None = None) -> Tensor:
        batch = Batch.of(rows, BLOCK, wanted=wanted)
        writing = batch.write_rows if batch.write_rows is not None else torch.arange(batch.rows)
        self.slots.update(zip(batch.write_slots.tolist(), batch.token_ids[writing].tolist(), strict=True))
        self.steps.append(batch.rows)
        return batch.of_wanted(batch.token_ids)[:, None].float()

    def logits(self, state: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((state[:, 0].long() + 1) % VOCAB, VOCAB).float()


def _drafter(modules: RecordingModules) -> MtpDrafter:
    starts = SequenceStarts(())
    return MtpDrafter(TorchDraftModel(modules, starts), starts, BLOCK, most_waiting=64)  # type: ignore[arg-type]  # a double


def _decode(sequence_id: int, position: int, token: int, table: IntArray, steps: int) -> Round:
    """A round of one row: the sequence's last token, at `position`."""
    start = SequenceStart(
        sequence_id=sequence_id, output_index=0, seed=0, prompt_tokens=1, params=SamplingParams(temperature=0)
    )
    return Round(
        sequence_ids=ints([sequence_id]),
        query_offsets=ints([0, 1]),
        token_ids=ints([token]),
        starts=ints([position]),
        write_from=ints([0]),
        sample_counts=ints([1]),
        next_token_ids=ints([0]),
        block_offsets=ints([0, len(table)]),
        block_ids=table,
        draft_steps=ints([steps]),
        follows=ints([1]),
        followed_from=ints([1]),
        begins=(start,),
    )


def _says(token: int, finish: int = 0) -> Verdict:
    return Verdict(
        token_offsets=ints([0, 1]),
        token_ids=ints([token]),
        accepted_rows=ints([1]),
        drafts_accepted=ints([0]),
        finish=ints([finish]),
    )


HIDDEN = torch.zeros(1, 1)


def test_pairs_that_waited_are_in_their_slots_before_the_next_draft() -> None:
    modules = RecordingModules()
    drafter, table = _drafter(modules), ints([7, 3, 5])

    for position in range(5):
        assert drafter.draft(_decode(1, position, position, table, steps=0), _says(position + 1), HIDDEN) == {}
    assert modules.slots == {}
    drafts = drafter.draft(_decode(1, 5, 5, table, steps=3), _says(6), HIDDEN)

    assert drafts[1].token_ids == [7, 8, 9]
    assert modules.steps == [6, 1, 1]
    # Slot p holds token p: 1..6 are certain, 7 and 8 are the drafts that steps 2 and 3 were fed.
    assert modules.slots == {int(table[p // BLOCK]) * BLOCK + p % BLOCK: p for p in range(1, 9)}


def test_a_sequence_that_ends_leaves_nothing_waiting() -> None:
    modules = RecordingModules()
    drafter = _drafter(modules)
    drafter.draft(_decode(1, 0, 0, ints([2]), steps=0), _says(1), HIDDEN)

    drafter.draft(_decode(1, 1, 1, ints([2]), steps=0), _says(2, finish=1), HIDDEN)

    assert modules.slots == {2 * BLOCK + 1: 1, 2 * BLOCK + 2: 2}


def test_a_preempted_sequences_waiting_pairs_never_touch_blocks_that_others_own_now() -> None:
    modules = RecordingModules()
    drafter = _drafter(modules)
    drafter.draft(_decode(1, 0, 0, ints([2]), steps=0), _says(1), HIDDEN)  # waits; then its block goes to sequence 9

    drafter.draft(_decode(9, 0, 30, ints([2]), steps=1), _says(31), HIDDEN)

    assert modules.slots == {2 * BLOCK + 1: 31}


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        (6, {2 * BLOCK + 1: 1, 2 * BLOCK + 2: 2, 2 * BLOCK + 3: 3, **{4 * BLOCK + n: 4 + n for n in range(4)}}),
        (4, {2 * BLOCK + 1: 1, 2 * BLOCK + 2: 2, 2 * BLOCK + 3: 3, 6 * BLOCK: 8, 6 * BLOCK + 1: 9}),
        (2, {**{4 * BLOCK + n: 4 + n for n in range(4)}, 6 * BLOCK: 8, 6 * BLOCK + 1: 9}),
    ],
)
def test_a_lost_block_costs_a_preempted_sequence_no_other_waiting_pair(lost: int, left: dict[int, int]) -> None:
    modules = RecordingModules()
    drafter = _drafter(modules)
    prompt = dataclasses.replace(
        _decode(1, 0, 0, ints([2, 4, 6]), steps=0),
        query_offsets=ints([0, 9]), token_ids=ints(range(9)), sample_counts=ints([0]), next_token_ids=ints([9]),
    )  # fmt: skip
    nothing = Verdict(
        token_offsets=ints([0, 0]), token_ids=ints(), accepted_rows=ints([9]), drafts_accepted=ints([0]),
        finish=ints([0]),
    )  # fmt: skip
    drafter.draft(prompt, nothing, torch.zeros(9, 1))

    drafter.draft(_decode(9, 0, 30, ints([lost]), steps=1), _says(31), HIDDEN)

    assert modules.slots == {**left, lost * BLOCK + 1: 31}


def test_waiting_pairs_survive_others_that_only_read_a_shared_block() -> None:
    modules = RecordingModules()
    drafter = _drafter(modules)
    for position in range(3):  # fills block 2, which is then shared
        drafter.draft(_decode(1, position, position, ints([2, 4]), steps=0), _says(position + 1), HIDDEN)

    drafter.draft(_decode(9, 4, 30, ints([2, 5]), steps=1), _says(31), HIDDEN)

    assert modules.slots == {2 * BLOCK + 1: 1, 2 * BLOCK + 2: 2, 2 * BLOCK + 3: 3, 5 * BLOCK + 1: 31}


def test_waiting_is_bounded() -> None:
    modules = RecordingModules()
    drafter, table = _drafter(modules), ints(range(40))

    for position in range(100):
        drafter.draft(_decode(1, position, position % VOCAB, table, steps=0), _says((position + 1) % VOCAB), HIDDEN)

    assert modules.steps == [65]
    assert np.all([modules.slots[p] == p % VOCAB for p in range(1, 66)])
