from collections.abc import Iterator

import pytest
from gpu.pretend_cuda import Counts, pretending


@pytest.fixture
def pretend() -> Iterator[Counts]:
    """CUDA is there, in this process, while the test runs; what was done on it."""
    with pretending() as counts:
        yield counts
