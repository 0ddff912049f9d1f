"""Registers kernels as torch operators: `torch.ops.outrider.NAME` launches on CUDA, and runs the twin on a CPU.

The twin is the kernel's plain reference (kernels/reference.py). CUDA graphs, tests and pretended devices see one
operator, and LAUNCHES says how many kernels it launches.
"""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("outrider", "DEF")  # operators are removed when it is
LAUNCHES: dict[str, int] = {}  # kernels launched per operator


def define(schema: str, launch: Callable[..., Any], twin: Callable[..., Any], *, launches: int = 1) -> Any:
    """The operator of `schema`, e.g. "double(Tensor x) -> Tensor"; `launch` and `twin` take its arguments in order."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, launch, "CUDA")
    _LIBRARY.impl(name, twin, "CPU")
    LAUNCHES[name] = launches
    return getattr(torch.ops.outrider, name)
