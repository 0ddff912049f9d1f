from collections.abc import Iterator

import pytest
from gpu.pretend_cuda import Counts, pretending


@pytest.fixture
def pretend() -> Iterator[Counts]:
    """Pretends CUDA in this process during a test, and counts its launches, syncs and copies."""
    with pretending() as counts:
        yield counts
