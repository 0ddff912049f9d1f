"""A ring hands over bytes in order, whatever their sizes, and a writer waits only for what is not read yet."""

import os
from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.parallel.links.ring import LEAST_CAPACITY, RingReader, RingWriter

SIZES = st.integers(0, LEAST_CAPACITY) | st.integers(0, 100) | st.just(LEAST_CAPACITY // 2)


class Pair:
    """Both ends, joined as two processes would be."""

    def __init__(self) -> None:
        self.writer, self.reader = RingWriter(), RingReader()
        self._random = np.random.default_rng(0)
        self._unread: deque[tuple[bytes, int | None]] = deque()  # and the new ring that came before it

    def write(self, size: int) -> bool:
        """Whether there was room."""
        descriptor = self.writer.grow(size)
        room = self.writer.has_room(size)
        if room:
            data = self._random.bytes(size)
            self.writer.write(data)
            self._unread.append((data, descriptor))
        else:
            assert descriptor is None, "a new ring has room"
        return room

    def read(self) -> None:
        """Checks the oldest message, and acknowledges when the reader says so."""
        data, descriptor = self._unread.popleft()
        if descriptor is not None:
            self.reader.attach(descriptor)
            os.close(descriptor)
        assert self.reader.read(len(data)) == data
        if self.reader.must_acknowledge():
            self.writer.release(self.reader.taken)

    def read_all(self) -> None:
        while self._unread:
            self.read()


@given(sizes=st.lists(SIZES, min_size=1, max_size=30), reads=st.lists(st.booleans(), min_size=30, max_size=30))
def test_bytes_come_out_as_they_went_in_and_who_has_read_everything_blocks_nobody(
    sizes: list[int], reads: list[bool]
) -> None:
    pair = Pair()
    for size, read in zip(sizes, reads, strict=False):
        if read:
            pair.read_all()
        if not pair.write(size):
            pair.read_all()
            assert pair.write(size)
    pair.read_all()


def test_messages_wrap_around_the_end() -> None:
    pair = Pair()
    for _ in range(10):
        assert pair.write(LEAST_CAPACITY // 3)
        pair.read()

    assert pair.writer.grow(LEAST_CAPACITY // 2) is None


def test_an_unread_ring_fills_up_and_is_not_written_over() -> None:
    pair = Pair()
    written = 0
    while pair.write(LEAST_CAPACITY // 8):
        written += 1

    assert written == 8
    pair.read_all()


def test_messages_too_large_for_the_ring_do_not_wait_for_those_before_them() -> None:
    pair = Pair()
    while pair.write(LEAST_CAPACITY // 2):
        pass

    assert [pair.write(LEAST_CAPACITY) for _ in range(3)] == [True, True, False]
    pair.read_all()


def test_two_messages_of_the_largest_size_fit_in_flight() -> None:
    pair = Pair()

    assert [pair.write(LEAST_CAPACITY) for _ in range(3)] == [True, True, False]
    pair.read_all()
