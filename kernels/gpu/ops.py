"""Makes operations of torch of the kernels: `torch.ops.outrider.NAME` launches on a GPU, and runs the twin on a CPU.

So a model is written once; graphs, tests and pretended devices see one operation, and know how many launches it is.
"""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("outrider", "DEF")  # lives as long as its operations
LAUNCHES: dict[str, int] = {}  # of each operation, by name


def define(schema: str, launch: Callable[..., Any], twin: Callable[..., Any], *, launches: int = 1) -> Any:
    """The operation of `schema`, e.g. "double(Tensor x) -> Tensor"; `launch` and `twin` take its arguments in order."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, launch, "CUDA")
    _LIBRARY.impl(name, twin, "CPU")
    LAUNCHES[name] = launches
    return getattr(torch.ops.outrider, name)
