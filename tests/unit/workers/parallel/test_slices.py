"""Slices cover everything once, differ by one unit at most, and cut none."""

from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.parallel.slices import Cut


@given(size=st.integers(0, 500), parts=st.integers(1, 9), unit=st.integers(1, 20))
def test_slices_cover_everything_and_cut_no_unit(size: int, parts: int, unit: int) -> None:
    cut = Cut(size, parts, unit)

    slices = [cut.slice(part) for part in range(parts)]
    assert [i for each in slices for i in range(each.start, each.stop)] == list(range(size))
    assert all(each.start % unit == 0 or each.start == size for each in slices)
    assert max(cut.widths) - min(cut.widths) <= 2 * unit
    assert cut.widest == max(cut.widths)
