"""Triton, where it is installed: kernels are defined without it too, so that their files import anywhere."""

from collections.abc import Callable
from typing import Any

triton: Any
tl: Any
try:
    import triton as _triton
    import triton.language as _language

    triton, tl = _triton, _language
except ImportError:  # a machine without GPUs
    triton = tl = None

# TRITON_INTERPRET=1, when the kernels were defined
INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)


def jit(kernel: Callable[..., Any]) -> Any:
    """triton.jit, or the function as it is."""
    return kernel if triton is None else triton.jit(kernel)


def power_of_two(size: int) -> int:
    """The next one from `size` on: what a block of Triton's is as long as."""
    return 1 << max(size - 1, 0).bit_length()


def ceil_div(size: int, part: int) -> int:
    return -(-size // part)
