"""Draws a token from each row of logits: coupled sampling (kernels/sampling.py) on a slice of the vocabulary.

logits [n, V] float32, temperatures [n] float64 (0: the largest logit), keys [n] int64 -> best [n, 2] float64, ids [n]
int64: the largest score and the next largest, and the lowest id of the largest, counted from `first`. score = logit / T
+ Gumbel noise, float64. Two launches: parts of a row, then a row's parts in order. No sums: nothing to order.

The noise's integers are kernels/sampling.py's. Of them, 1 - u = (2^53 - 2 bits - 1) 2^-53 is exact, so its logarithm is
log1p(-u).
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import ceil_div, jit, power_of_two, tl
from outrider.kernels.gpu.ops import define
from outrider.kernels.sampling import MIX_1, MIX_2, VOCAB_STEP

_AT_ONCE = 1024


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


NOISE = (_signed(VOCAB_STEP), _signed(MIX_1), _signed(MIX_2))  # its constants, as int64


@jit
def noise_bits(key, v, STEP: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr):
    """The noise's 52-bit integers of entries `v` (int64) of the row with that key."""
    z = key + (v + 1) * STEP
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * ONE
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * TWO
    z = z ^ ((z >> 31) & 0x1FFFFFFFF)
    return (z >> 12) & 0xFFFFFFFFFFFFF


@jit
def _draw_parts(LOGITS, TEMPERATURES, KEYS, BEST, IDS, V, first, parts, BLOCK: tl.constexpr, STEP: tl.constexpr,
                ONE: tl.constexpr, TWO: tl.constexpr):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = part * BLOCK + tl.arange(0, BLOCK)
    inside = v < V
    scores = tl.load(LOGITS + row * V + v, mask=inside, other=0.0).to(tl.float64)
    temperature = tl.load(TEMPERATURES + row)
    if temperature > 0:
        bits = noise_bits(tl.load(KEYS + row), v.to(tl.int64) + first, STEP, ONE, TWO)
        rest = (0x20000000000000 - 2 * bits - 1).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
        scores = scores / temperature - tl.log(-tl.log(rest))
    scores = tl.where(inside, scores, float("-inf"))
    best = tl.max(scores, 0)
    place = tl.min(tl.where((scores == best) & inside, v, V), 0)
    second = tl.max(tl.where(v == place, float("-inf"), scores), 0)
    out = row * parts + part
    tl.store(BEST + out * 2, best)
    tl.store(BEST + out * 2 + 1, second)
    tl.store(IDS + out, place.to(tl.int64) + first)


@jit
def _join_parts(BEST, IDS, OUT, OUT_IDS, parts, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, SIZE)
    inside = p < parts
    best = tl.load(BEST + (row * parts + p) * 2, mask=inside, other=float("-inf"))
    second = tl.load(BEST + (row * parts + p) * 2 + 1, mask=inside, other=float("-inf"))
    most = tl.max(best, 0)
    place = tl.min(tl.where((best == most) & inside, p, SIZE), 0)  # parts ascend as their ids do
    others = tl.max(tl.where(p == place, float("-inf"), best), 0)
    runner_up = tl.maximum(others, tl.max(tl.where(p == place, second, float("-inf")), 0))
    tl.store(OUT + row * 2, most)
    tl.store(OUT + row * 2 + 1, runner_up)
    tl.store(OUT_IDS + row, tl.max(tl.where(p == place, tl.load(IDS + row * parts + p, mask=inside, other=0), 0), 0))


def launch(logits: Tensor, temperatures: Tensor, keys: Tensor, first: int) -> tuple[Tensor, Tensor]:
    rows, size = logits.shape
    parts = ceil_div(size, _AT_ONCE)
    best, ids = logits.new_empty(rows, parts, 2, dtype=torch.float64), keys.new_empty(rows, parts)
    out, out_ids = logits.new_empty(rows, 2, dtype=torch.float64), keys.new_empty(rows)
    if rows:
        _draw_parts[rows, parts](
            logits, temperatures, keys, best, ids, size, first, parts, BLOCK=_AT_ONCE, STEP=NOISE[0],
            ONE=NOISE[1], TWO=NOISE[2],
        )  # fmt: skip
        _join_parts[(rows,)](best, ids, out, out_ids, parts, SIZE=power_of_two(parts))
    return out, out_ids


draw = define(
    "draw(Tensor logits, Tensor temperatures, Tensor keys, int first) -> (Tensor, Tensor)",
    launch,
    reference.draw,
    launches=2,
)
