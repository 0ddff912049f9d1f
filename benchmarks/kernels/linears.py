"""Products over packed weights in sets that no cache holds: bytes, and the time of a product by its rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.common.repeats import interleaved, median, seconds
from benchmarks.kernels.bandwidth import last_level_cache
from outrider.kernels.cpu.context import Context
from outrider.kernels.cpu.library import BFLOAT16, FLOAT32, INT8, PANEL, STRETCH_8, LinearStruct
from outrider.kernels.cpu.packing import Arena, packed

KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}
_WEIGHT_BYTES = {FLOAT32: 4.0, BFLOAT16: 2.0, INT8: 1.0 + 4 / STRETCH_8}  # of 8 bits: with their scales


@dataclass(frozen=True, slots=True)
class Product:
    """One of a model's products, outputs x inputs."""

    name: str
    outputs: int
    inputs: int


PRODUCTS = (
    Product("R1 attention in", 1536 + 576, 7168),
    Product("R1 expert gate and up", 2 * 2048, 7168),
    Product("R1 expert down", 7168, 2048),
    Product("scout attention in", 128 + 576, 256),
    Product("scout expert gate and up", 2 * 128, 256),
    Product("scout head", 4096, 256),
)


def weight_bytes(linear: LinearStruct) -> int:
    """What reading it reads, the panels' filling included; 0 for a product that is not there."""
    panels = -(-linear.outputs // PANEL)
    return int(panels * PANEL * linear.inputs * _WEIGHT_BYTES[linear.kind])


class WeightSet:
    """Copies of one product's weights, so many that the last-level cache holds an eighth of them at most."""

    def __init__(self, product: Product, kind: str) -> None:
        self.product = product
        self._arena = Arena()
        weight = torch.randn(product.outputs, product.inputs, generator=torch.Generator().manual_seed(0))
        first = packed(self._arena, weight, KINDS[kind])
        self.bytes_each = weight_bytes(first)
        count = math.ceil(8 * last_level_cache() / self.bytes_each)
        self._linears = [first, *(packed(self._arena, weight, KINDS[kind]) for _ in range(count - 1))]

    def seconds_each(self, context: Context, x: torch.Tensor) -> float:
        """Of one product by `x` [rows, inputs], over all copies in turn."""

        def pass_over() -> None:
            for linear in self._linears:
                context.linear(linear, x)

        return seconds(pass_over) / len(self._linears)


def measure(weights: WeightSet, context: Context, rows: Sequence[int], repeats: int, gb_per_s: float) -> dict[str, Any]:
    """By number of rows: microseconds, GB/s, its share of `gb_per_s`, GFLOP/s, and the time over that of one row."""
    product = weights.product
    inputs = {str(n): torch.randn(n, product.inputs) for n in rows}
    arms = {name: partial(weights.seconds_each, context, x) for name, x in inputs.items()}
    interleaved(arms, 1)
    took = {name: median(values) for name, values in interleaved(arms, repeats).items()}
    figures = {}
    for name, each in took.items():
        rate = weights.bytes_each / each / 1e9
        figures[name] = {
            "us": 1e6 * each,
            "gb_per_s": rate,
            "share": rate / gb_per_s,
            "gflop_per_s": 2 * int(name) * product.outputs * product.inputs / each / 1e9,
            "over_one_row": each / took[str(rows[0])],
        }
    return figures
