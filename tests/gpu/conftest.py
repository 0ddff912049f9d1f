from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gpu.pretend_cuda import Counts, pretending


@pytest.fixture
def pretend() -> Iterator[Counts]:
    """Pretends CUDA in this process during a test, and counts its launches, syncs and copies."""
    with pretending() as counts:
        yield counts


@pytest.fixture
def dots_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter adds up dot products in float64 during a test.

    It calls the BLAS, which on some processors adds up in an order that depends on a row's place in the tile.
    """
    interpreter: Any = pytest.importorskip("triton.runtime.interpreter")

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
