"""Rounding to e4m3 inside kernels."""

from __future__ import annotations

from outrider.kernels.gpu.language import jit, tl

GROUP = 128  # values of an activation that share a scale, and the side of a weight's block


@jit
def to_e4m3(x, INTERPRETED: tl.constexpr):
    """float32 -> e4m3, to the nearest, ties to even. A GPU has an instruction; the interpreter's own cast truncates."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        odd = (bits >> 20) & 1
        rounded = ((bits + 0x7FFFF + odd) & ~0xFFFFF).to(tl.float32, bitcast=True)
        magic = 1.5 * 2.0**14  # values below 2^-6 are multiples of 2^-9
        x = tl.where(tl.abs(x) < 2.0**-6, (x + magic) - magic, rounded)
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    return x.to(tl.float8e4nv)


@jit
def quantized(x, AXIS: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 tile, whose axis AXIS is one group of 128 -> e4m3, and the scales without that axis."""
    peak = tl.maximum(tl.max(tl.abs(x), AXIS), 1e-10)
    return to_e4m3(x * tl.expand_dims(448.0 / peak, AXIS), INTERPRETED), peak / 448.0
