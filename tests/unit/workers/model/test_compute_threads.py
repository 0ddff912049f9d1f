"""Threads are woken for layers that are wide enough."""

import pytest

from outrider.workers.model.deepseek import compute_threads


@pytest.mark.parametrize(
    ("hidden_size", "rows", "available", "threads"),
    [
        (256, 1, 8, 1),
        (256, 8, 8, 1),
        (256, 64, 8, 2),
        (256, 2048, 8, 8),
        (1024, 1, 8, 2),
        (7168, 1, 64, 14),
        (7168, 9, 1, 1),
    ],
)
def test_threads_follow_the_width_of_the_model_and_the_rows(
    hidden_size: int, rows: int, available: int, threads: int
) -> None:
    assert compute_threads(hidden_size, rows, available) == threads
