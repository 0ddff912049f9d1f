"""Two lanes of one rank that alternate: one computes while the other's exchange is running. Torch-free.

Only one lane runs at any time. It switches to the other exactly where it would wait for other ranks. So the order of
operations is the same on every rank, whatever they take, and the lanes' data needs no lock.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from outrider.workers.parallel.collectives.collectives import ExchangeBrokenError

T = TypeVar("T")


def no_op() -> None:
    """The `on_launched` callback of a rank with one lane."""


class LaneTurns:
    """The first lane runs in the calling thread, the second in its own. Call `both` from one thread at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "second-lane")
        self._here = threading.local()

    def both(self, first: Callable[[], T], second: Callable[[], T]) -> tuple[T, T]:
        """Runs both lanes and returns their results. The first lane begins, so it is always ahead.

        If one fails, the other ends at its next `hand_over`. The error is raised after both have ended.
        """
        pair: _Pair[T] = _Pair()
        other = self._thread.submit(self._run, pair, 1, second)
        self._run(pair, 0, first)
        other.result()
        if pair.failure is not None:
            raise pair.failure
        return pair.results[0], pair.results[1]

    def hand_over(self) -> None:
        """Switches to the other lane; returns when that one hands over or ends. Outside of lanes it does nothing.

        ExchangeBrokenError if the other lane has failed.
        """
        pair: _Pair[object] | None = getattr(self._here, "pair", None)
        if pair is not None:
            pair.hand_over(self._here.lane)

    def close(self) -> None:
        """Ends the second lane's thread. May be called twice."""
        self._thread.shutdown()

    def _run(self, pair: "_Pair[T]", lane: int, work: Callable[[], T]) -> None:
        self._here.pair, self._here.lane = pair, lane
        try:
            pair.run(lane, work)
        finally:
            self._here.pair = None


class _Pair(Generic[T]):
    """The two lanes of one round."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None  # the first
        self.results: dict[int, T] = {}
        self._gates = threading.Semaphore(1), threading.Semaphore(0)  # released when it is the lane's turn
        self._ended = [False, False]

    def run(self, lane: int, work: Callable[[], T]) -> None:
        try:
            self._gates[lane].acquire()
            self._check()
            self.results[lane] = work()
        except BaseException as error:  # raised by the thread that waits for both
            self.failure = self.failure or error
        self._ended[lane] = True
        self._gates[1 - lane].release()

    def hand_over(self, lane: int) -> None:
        self._check()
        if not self._ended[1 - lane]:
            self._gates[1 - lane].release()
            self._gates[lane].acquire()
            self._check()

    def _check(self) -> None:
        if self.failure is not None:
            raise ExchangeBrokenError(f"the other lane of this rank has failed: {self.failure}") from self.failure
