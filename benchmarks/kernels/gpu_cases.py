"""The GPU kernels at R1's shapes, each with its twin: what benchmarks/gpu_check.py compares and times."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu import choose, draw, experts, linear, mla, norms, values
from outrider.kernels.sampling import row_key, sequence_key


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel, its twin, their arguments, and the bytes that the kernel must read."""

    name: str
    launch: Callable[..., Any]
    twin: Callable[..., Any]
    arguments: tuple[Any, ...]
    bytes: int


def random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device).to(torch.float32 if device.type == "cpu" else torch.bfloat16)


def fp8(device: torch.device, *shape: int) -> tuple[Tensor, Tensor]:
    """A weight [.., N, K] in e4m3, and its block scales."""
    *stacked, outputs, inputs = shape
    scales = torch.rand(*stacked, -(-outputs // 128), -(-inputs // 128), device=device) * inputs**-0.5
    values = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
    for each in values.view(-1, outputs, inputs):
        each.copy_(torch.randn(outputs, inputs, device=device))
    return values, scales


def cases(device: torch.device) -> Iterator[Case]:
    """R1's shapes for TP8, and for experts spread over 16 GPUs; smaller ones on a CPU."""
    small = device.type == "cpu"
    hidden, many, width, stack = (512, 128, 128, 4) if small else (7168, 2112, 256, 257)
    for rows in (1, 4, 64):
        weight = fp8(device, many, hidden)
        arguments = (random(device, rows, hidden), *weight, False)
        yield Case(f"linear, {rows} rows", linear.launch, reference.linear, arguments, weight[0].numel())
    gate_up, down = fp8(device, stack, 2 * width, hidden), fp8(device, stack, hidden, width)
    for rows in (1, 4) if small else (1, 4, 16, 64):
        ids = torch.rand(rows, stack, device=device).argsort(dim=1)[:, : min(9, stack)].sort(dim=1).values.int()
        each = 3 * hidden * width * len(ids.unique())
        arguments = (random(device, rows, hidden), ids, *gate_up, *down, True)
        yield Case(f"experts, {rows} rows", experts.launch, reference.experts, arguments, each)
    yield from _spread_cases(device)
    yield from _attention_cases(device)
    logits, bias = torch.randn(64, 256, device=device), torch.randn(256, device=device)
    yield Case("choose", choose.launch, reference.choose, (logits, bias, 8, 8, 4, True, 2.5, 1), logits.numel() * 4)
    stream, outputs, weights = random(device, 4, hidden), random(device, 36, hidden), torch.rand(4, 9, device=device)
    arguments = (stream, outputs, weights, random(device, hidden), 1e-6)
    yield Case("join_norm", norms.launch_join_norm, reference.join_norm, arguments, 40 * hidden * 2)
    vocab = 2000 if small else 129280
    keys = torch.tensor([row_key(sequence_key(n, 0), 5) for n in range(4)], device=device)
    arguments = (torch.randn(4, vocab, device=device), torch.full((4,), 0.7, device=device).double(), keys, 0)
    yield Case("draw", draw.launch, reference.draw, arguments, 4 * vocab * 4)


def _spread_cases(device: torch.device) -> Iterator[Case]:
    """One of 16 ranks with whole experts: each row is one pair, for one of the rank's experts."""
    hidden, width, stack = (256, 128, 4) if device.type == "cpu" else (7168, 2048, 16)
    gate_up, down = fp8(device, stack, 2 * width, hidden), fp8(device, stack, hidden, width)
    for pairs in (3,) if device.type == "cpu" else (4, 32, 256, 2048):
        ids = torch.randint(0, stack, (pairs, 1), device=device, dtype=torch.int32)
        each = 3 * hidden * width * len(ids.unique())
        arguments = (random(device, pairs, hidden), ids, *gate_up, *down, True)
        yield Case(f"spread experts, {pairs} pairs", experts.launch, reference.experts, arguments, each)


def _attention_cases(device: torch.device) -> Iterator[Case]:
    small = device.type == "cpu"
    for rows, context in ((1, 100), (4, 200)) if small else ((1, 4096), (4, 4096), (4, 32768)):
        pages = torch.randperm(-(-context // 64), device=device).int()[None]
        seen = torch.tensor([[0, context - rows + 1 + n] for n in range(rows)], dtype=torch.int32, device=device)
        tiles = torch.tensor([[0, 0, rows]], dtype=torch.int32, device=device)
        q, cache = random(device, rows, 16, 576), random(device, pages.numel() * 64, 576)
        up = random(device, 16, 512, 128) / 20
        rest = tiles, pages, seen, 64, 512, 0.04, -(-context // mla.SPLIT)

        def launch(*arguments: Any, seen: Tensor = seen, up: Tensor = up) -> Tensor:
            return values.launch(*mla.launch(*arguments), seen, up)

        def twin(*arguments: Any, seen: Tensor = seen, up: Tensor = up) -> Tensor:
            moved = [each.cpu() if isinstance(each, Tensor) else each for each in arguments]
            return reference.values(*reference.mla(*moved), seen.cpu(), up.cpu())

        for name, own in (("attention", cache), ("attention, FP8 cache", _in_fp8(cache))):
            bytes_read = own.numel() * own.element_size()
            yield Case(f"{name}, {rows} rows, context {context}", launch, twin, (q, own, *rest), bytes_read)


def _in_fp8(cache: Tensor) -> Tensor:
    """[slots, 576] as kv_cache_dtype="fp8" keeps them."""
    parts = (*reference.quantize_rows(cache[:, :512]), cache[:, 512:].contiguous())
    return torch.cat([part.view(torch.uint8) for part in parts], dim=1)
