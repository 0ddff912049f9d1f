import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import Rows, flat_rows, make_batch

from outrider.workers.model.batch import CHUNK, SHORT_ROWS, Batch, Group
from outrider.workers.model.rows import Rows as FlatRows

BLOCK = 16


def seen_slots(batch: Batch, group: Group) -> dict[int, list[int]]:
    """For every row of a group, the cache slots it sees, in order."""
    pages = group.pages.view(group.sequences, -1)
    slots = (pages[..., None] * batch.page_size + torch.arange(batch.page_size)).flatten(1)  # [S, C*CHUNK]
    ids = torch.arange(batch.rows) if group.row_ids is None else group.row_ids
    rows = ids.view(group.rows, group.sequences)
    visible = group.bias.view(group.rows, group.sequences, -1) == 0
    seen: dict[int, list[int]] = {}
    for place in range(group.rows):
        for sequence in range(group.sequences):
            mine = slots[sequence][visible[place, sequence]].tolist()
            row = int(rows[place, sequence])
            assert seen.setdefault(row, mine) == mine  # a row that fills up a rectangle sees what it always sees
    return seen


parts = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(parts=parts, mtp=st.booleans(), block_size=st.sampled_from([8, 16, 64, 128, 24]), seed=st.integers(0, 99))
def test_every_row_sees_its_own_sequence_up_to_itself(
    parts: list[tuple[int, int]], mtp: bool, block_size: int, seed: int
) -> None:
    ids = iter(np.random.default_rng(seed).permutation(2000).tolist())
    tables = [[next(ids) for _ in range(-(-(start + rows + mtp) // block_size))] for rows, start in parts]
    sequences = [Rows([0] * rows, start, table) for (rows, start), table in zip(parts, tables, strict=True)]

    batch = make_batch(sequences, block_size=block_size, mtp=mtp)

    seen: dict[int, list[int]] = {}
    for group in batch.groups:
        seen |= seen_slots(batch, group)
    row = 0
    for (rows, start), table in zip(parts, tables, strict=True):
        slots = [block * block_size + place for block in table for place in range(block_size)]
        for position in range(start + mtp, start + rows + mtp):
            assert seen[row] == slots[mtp : position + 1]
            assert batch.write_slots[row] == slots[position]
            row += 1
    assert row == batch.rows == len(seen)


def test_rows_of_a_shared_slot_do_not_write() -> None:
    batch = make_batch([Rows([1, 2, 3], 15, [4, 9], write_from=16), Rows([5], 0, [2])])

    assert batch.write_rows is not None
    assert batch.write_rows.tolist() == [1, 2, 3]
    assert batch.write_slots.tolist() == [9 * BLOCK, 9 * BLOCK + 1, 2 * BLOCK]


def test_a_lone_sequence_in_consecutive_blocks_is_read_in_place() -> None:
    together, apart = (make_batch([Rows([1], 40, blocks)]) for blocks in ([5, 6, 7], [5, 7, 6]))

    assert together.groups[0].first_page == 5
    assert apart.groups[0].first_page is None


def test_decoding_sequences_of_like_length_attend_together() -> None:
    batch = make_batch([Rows([1], 10 + 5 * i, range(20 * i, 20 * i + 10)) for i in range(6)])

    (group,) = batch.groups
    assert (group.sequences, group.rows, group.row_ids) == (6, 1, None)


def test_a_long_sequence_does_not_lengthen_the_others() -> None:
    short = [Rows([1], 20, [i]) for i in range(4)]

    batch = make_batch([*short, Rows([1], 1500, range(100, 200))])

    assert sorted(group.chunks for group in batch.groups) == [2, 1500 // CHUNK + 1]


def test_a_prompt_chunk_attends_alone() -> None:
    batch = make_batch([Rows([1], 20, [1, 2]), Rows([0] * (SHORT_ROWS + 1), 0, [3, 4])])

    assert sorted(group.rows for group in batch.groups) == [1, SHORT_ROWS + 1]


@pytest.mark.parametrize("mtp", [False, True])
def test_an_empty_round_is_a_batch_of_no_rows(mtp: bool) -> None:
    none = np.zeros(0, dtype=np.int64)
    rows = FlatRows(
        token_ids=none, rope_positions=none, cache_positions=none, query_offsets=np.zeros(1, dtype=np.int64),
        write_from=none, block_offsets=np.zeros(1, dtype=np.int64), block_ids=none, first_slots=none,
    )  # fmt: skip
    batch = Batch.of(rows, block_size=16)

    assert batch.rows == 0
    assert batch.groups == ()


def test_only_wanted_rows_attend_and_all_write() -> None:
    parts = [Rows([1, 2, 3], 15, [4, 9], write_from=16), Rows([5, 6], 0, [2]), Rows([7], 30, [3, 8])]
    all_rows, few = make_batch(parts), Batch.of(flat_rows(parts), BLOCK, wanted=np.array([2, 5]))
    seen = {row: slots for group in all_rows.groups for row, slots in seen_slots(all_rows, group).items()}
    (group,) = few.groups
    assert group.row_ids is None
    slots = (group.pages.view(2, -1)[..., None] * few.page_size + torch.arange(few.page_size)).flatten(1)
    visible = group.bias.view(2, -1) == 0

    assert [slots[n][visible[n]].tolist() for n in range(2)] == [seen[2], seen[5]]
    assert few.write_slots.tolist() == all_rows.write_slots.tolist()
    assert few.of_wanted(few.token_ids).tolist() == [3, 7]
    assert (few.rows, few.wanted_rows, all_rows.wanted_rows) == (6, 2, 6)
