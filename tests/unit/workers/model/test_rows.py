"""Some of a round's rows are a round of their own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rounds import Rows as Part
from rounds import flat_rows

from outrider.workers.model.rows import Rows


def _as_parts(rows: Rows) -> list[tuple[list[int], int, list[int], int]]:
    """Each sequence's tokens, first slot, blocks, and where it writes from."""
    found = []
    for n in range(len(rows.write_from)):
        span = slice(rows.query_offsets[n], rows.query_offsets[n + 1])
        blocks = rows.block_ids[rows.block_offsets[n] : rows.block_offsets[n + 1]]
        slots = rows.cache_positions[span]
        assert np.array_equal(slots, np.arange(slots[0], slots[0] + len(slots)))
        assert np.array_equal(slots, rows.rope_positions[span])
        found.append((rows.token_ids[span].tolist(), int(slots[0]), blocks.tolist(), int(rows.write_from[n])))
    return found


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_a_sequence_that_is_cut_keeps_its_blocks_on_both_sides(lengths: list[int], data: st.DataObject) -> None:
    parts = [
        Part(list(range(100 * n, 100 * n + length)), 7 * n, [n, n + 50], write_from=n)
        for n, length in enumerate(lengths)
    ]
    cut = data.draw(st.integers(0, sum(lengths)))
    rows = flat_rows(parts)

    wanted: list[list[tuple[list[int], int, list[int], int]]] = [[], []]
    first = 0
    for part in parts:
        here = min(max(cut - first, 0), len(part.tokens))
        for side, (tokens, start) in enumerate(
            ((part.tokens[:here], part.start), (part.tokens[here:], part.start + here))
        ):
            if tokens:
                wanted[side].append((list(tokens), start, list(part.blocks), part.write_from))
        first += len(part.tokens)
    assert _as_parts(rows.between(0, cut)) == wanted[0]
    assert _as_parts(rows.between(cut, len(rows))) == wanted[1]
