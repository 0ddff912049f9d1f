"""y = x W^T with bitwise row independence: an output row depends on its input row only, not on the other rows.

A library's matrix product chooses its order of summation by the number of rows. There are two ways to avoid that.
`PackedLinear`, for float32, uses oneDNN's inner product over weights packed once. It keeps one order as long as it
sums at most 1024 inputs, so longer sums are split into chunks of 1024 and joined in order; rows beyond the tested
number take several products. Each shape is tested on this machine when it is first loaded. `TiledLinear` is for shapes
that fail the test, and for bfloat16 and float16, whose packed products change their order at row counts that a test
would miss. It processes rows in tiles of one fixed shape. `FastLinear` guarantees nothing.

Outputs may be split over ranks, and inputs are gathered. A rank has whole weight rows, so splitting splits no sum, and
parts of two or more outputs have the same bits as the whole.
"""

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 1024  # inputs summed by one call
TILE_ROWS = 16
MOST_ROWS = 2048  # in one packed product: the largest number tested
_PROBED_ROWS = (1, 2, 3, 4, 8, 16, 64, 200)

log = logging.getLogger(__name__)


class FastLinear(nn.Module):
    """Torch's own product: the fastest, with any order of sums. Used with numerics "fast" and on GPUs."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class PackedLinear(nn.Module):
    """oneDNN's product over packed weights, in chunks of inputs."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.outputs = weight.shape[0]
        self._chunks = [_pack(weight[:, first : first + CHUNK]) for first in range(0, weight.shape[1], CHUNK)]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, self.outputs)
        if x.shape[0] <= MOST_ROWS:
            return self._product(x)
        return torch.cat([self._product(part) for part in torch.split(x, MOST_ROWS)])

    def _product(self, x: Tensor) -> Tensor:
        if len(self._chunks) == 1:
            return _packed_product(x, self._chunks[0])
        total = _packed_product(x[:, :CHUNK].contiguous(), self._chunks[0])
        for number, weight in enumerate(self._chunks[1:], start=1):
            total += _packed_product(x[:, number * CHUNK : (number + 1) * CHUNK].contiguous(), weight)
        return total


class TiledLinear(nn.Module):
    """Torch's product, always over TILE_ROWS rows: the last tile is padded with zeros."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        tiles = -(-x.shape[0] // TILE_ROWS)
        padded = functional.pad(x, (0, 0, 0, tiles * TILE_ROWS - x.shape[0]))
        out = x.new_empty(tiles * TILE_ROWS, self.weight.shape[0])
        for tile in range(tiles):
            rows = slice(tile * TILE_ROWS, (tile + 1) * TILE_ROWS)
            out[rows] = functional.linear(padded[rows], self.weight)
        return out[: x.shape[0]]


Linear = FastLinear | PackedLinear | TiledLinear


def make_linear(weights: Tensor | Sequence[Tensor], *, exact: bool) -> Linear:
    """A linear over `weights` [outputs, inputs]; several are concatenated, so that one product computes all.

    With `exact` (weights on a CPU), a row of its output has the same bits in every batch.
    """
    weight = weights if isinstance(weights, Tensor) else torch.cat(list(weights))
    if not exact:
        return FastLinear(weight)
    outputs, inputs = weight.shape
    widths = sorted({min(CHUNK, inputs), inputs % CHUNK or CHUNK})
    if weight.dtype == torch.float32 and all(_packing_is_exact(width, outputs) for width in widths):
        return PackedLinear(weight)
    return TiledLinear(weight)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed


def _packed_product(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


@functools.cache
def _packing_is_exact(inputs: int, outputs: int) -> bool:
    """Tests whether each row of a packed product of this shape has the same bits in any batch, at any index."""
    if torch._C._has_mkldnn and _rows_agree(inputs, outputs):
        return True
    log.warning(
        "packed linear of %d inputs and %d outputs is not exact on this machine: using tiles of %d rows (slower)",
        inputs, outputs, TILE_ROWS,
    )  # fmt: skip
    return False


def _rows_agree(inputs: int, outputs: int) -> bool:
    generator = torch.Generator().manual_seed(inputs * outputs)
    x = torch.randn(MOST_ROWS, inputs, generator=generator)
    try:
        weight = _pack(torch.randn(outputs, inputs, generator=generator))
        whole = _packed_product(x, weight)
        room = [(count, MOST_ROWS - count) for count in _PROBED_ROWS]
        spans = [(first, count) for count, most in room for first in (0, most // 3, most)]
        return all(
            torch.equal(_packed_product(x[first : first + count], weight), whole[first : first + count])
            for first, count in spans
        )
    except RuntimeError:  # this build's oneDNN does not support this machine
        return False
