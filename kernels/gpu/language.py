"""Imports Triton if it is installed. Kernels are defined without it too, so that their modules always import."""

from collections.abc import Callable
from typing import Any

triton: Any
tl: Any
try:
    import triton as _triton
    import triton.language as _language

    triton, tl = _triton, _language
except ImportError:  # installed with the extra "gpu"
    triton = tl = None

# Whether TRITON_INTERPRET=1 was set when the kernels were defined.
INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)


def jit(kernel: Callable[..., Any]) -> Any:
    """triton.jit, or the function unchanged without Triton."""
    return kernel if triton is None else triton.jit(kernel)


def power_of_two(size: int) -> int:
    """The smallest power of two >= `size`: the length of a Triton block."""
    return 1 << max(size - 1, 0).bit_length()


def ceil_div(size: int, part: int) -> int:
    return -(-size // part)
