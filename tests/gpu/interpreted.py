"""Kernels launched in Triton's interpreter: what `TRITON_INTERPRET=1` (tests/conftest.py) makes of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="kernels are interpreted by triton: pip install triton")

E4M3 = torch.float8_e4m3fn


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fp8(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [.., N, K] in e4m3, and scales for its blocks."""
    *stacked, outputs, inputs = shape
    scales = 0.5 + torch.rand(*stacked, -(-outputs // 128), -(-inputs // 128), generator=_generator(seed + 1))
    return drawn(*shape, seed=seed).to(E4M3), scales * inputs**-0.5


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def same(found: Any, wanted: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
