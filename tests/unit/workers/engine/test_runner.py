"""Threads are woken for layers that are wide enough."""

import pytest

from outrider.workers.engine.runner import compute_threads


@pytest.mark.parametrize(
    ("hidden_size", "available", "threads"), [(256, 8, 1), (1024, 8, 2), (7168, 8, 8), (7168, 64, 14), (7168, 1, 1)]
)
def test_threads_follow_the_width_of_the_model(hidden_size: int, available: int, threads: int) -> None:
    assert compute_threads(hidden_size, available) == threads
