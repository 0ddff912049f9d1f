"""Reference implementations (twins) of the kernels, which tests compare with. Slow on purpose.

They are written from the formulas and share only constants with the kernels.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from outrider.kernels.sampling import INDEX_STEP, MIX_1, MIX_2, POSITION_STEP, SEED_STEP, VOCAB_STEP
from outrider.kernels.sampling import gumbel_noise as sampled_noise


def noise_bits(seed: int, output_index: int, position: int, vocab: int) -> list[int]:
    """One row of the noise's integers (sampling.noise_bits), 52 bits each."""
    sequence = next(_stream(next(_stream(seed, SEED_STEP)), INDEX_STEP, skip=output_index))
    row = _stream(next(_stream(sequence, POSITION_STEP, skip=position)), VOCAB_STEP)
    return [next(row) // 2**12 for _ in range(vocab)]


def gumbel_noise(seed: int, output_index: int, position: int, vocab: int) -> NDArray[np.float64]:
    """One row of Gumbel noise (sampling.gumbel_noise), float64 [vocab]."""
    uniform = [(bits + 0.5) * 2.0**-52 for bits in noise_bits(seed, output_index, position, vocab)]
    return np.array([-math.log(-math.log1p(-u)) for u in uniform])


def _stream(start: int, step: int, skip: int = 0) -> Iterator[int]:
    """SplitMix64: the mixed words of the Weyl sequence start + step, start + 2 step, ... modulo 2^64."""
    state = (start + skip * step) % 2**64
    while True:
        state = (state + step) % 2**64
        word = state
        for shift, factor in ((30, MIX_1), (27, MIX_2), (31, 1)):
            word = (word ^ (word // 2**shift)) * factor % 2**64
        yield word


def quantized_int8(weight: NDArray[np.float32], stretch: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """8-bit weights of [outputs, inputs], and the scales [outputs, ceil(inputs / stretch)] (cpu/src/linear.h, pack).

    Each `stretch` inputs of a row share a scale: their largest magnitude / 127. Computed in float32.
    """
    outputs, inputs = weight.shape
    integers = np.zeros((outputs, inputs), dtype=np.int8)
    scales = np.zeros((outputs, -(-inputs // stretch)), dtype=np.float32)
    for row in range(outputs):
        for part, first in enumerate(range(0, inputs, stretch)):
            values = weight[row, first : first + stretch]
            most = np.abs(values).max()
            if most > 0:
                integers[row, first : first + stretch] = np.rint(values * (np.float32(127) / most))
            scales[row, part] = most / np.float32(127)
    return integers, scales


def dequantized_int8(weight: NDArray[np.float32], stretch: int) -> NDArray[np.float64]:
    """The values of these weights, float64 [outputs, inputs]."""
    integers, scales = quantized_int8(weight, stretch)
    return integers.astype(np.float64) * scales.repeat(stretch, axis=1)[:, : weight.shape[1]].astype(np.float64)


# Twins of kernels/gpu, under the same names and with the same arguments: plain torch, computed in float32. Pretended
# CUDA (tests/gpu) runs them too, so they are vectorised.


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """gpu/quantize.py: x [M, K] in e4m3, and a float32 scale per 128 values of a row."""
    groups = functional.pad(x.float(), (0, -x.shape[1] % 128)).unflatten(1, (-1, 128))
    scales = groups.abs().amax(dim=2).clamp_(min=1e-10) / 448  # [M, groups]
    values = (groups / scales[..., None]).clamp_(-448, 448).flatten(1)[:, : x.shape[1]]
    return values.to(torch.float8_e4m3fn), scales


def dequantized_rows(values: Tensor, scales: Tensor) -> Tensor:
    """The inverse of quantize_rows, in float32."""
    return values.float() * scales.repeat_interleave(128, dim=1)[:, : values.shape[1]]


def dequantized(weight: Tensor, scale: Tensor | None) -> Tensor:
    """A weight [.., N, K] in float32; scales [.., ceil(N / 128), ceil(K / 128)], or None."""
    if scale is None:
        return weight.float()
    by_row = scale.repeat_interleave(128, dim=-2)[..., : weight.shape[-2], :]
    return weight.float() * by_row.repeat_interleave(128, dim=-1)[..., : weight.shape[-1]]


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, wide: bool) -> Tensor:
    """gpu/linear.py: x W^T. With FP8 weights, x is quantised too."""
    read = x.float() if scale is None else dequantized_rows(*quantize_rows(x))
    out = functional.linear(read, dequantized(weight, scale))
    return out if wide else out.to(x.dtype)


def sort_pairs(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """gpu/sort.py: pairs sorted by expert, and where each expert's pairs begin."""
    flat = ids.flatten()
    own = ((flat >= 0) & (flat < experts)).nonzero().flatten()
    order = torch.zeros_like(flat)
    order[: len(own)] = own[flat[own].argsort(stable=True)].to(ids.dtype)
    counts = torch.bincount(flat[own].long(), minlength=experts)
    return order, functional.pad(counts.cumsum(0), (1, 0)).to(ids.dtype)


def experts(
    x: Tensor, ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor | None, down: Tensor, down_scale: Tensor | None,
    whole: bool,
) -> Tensor:  # fmt: skip
    """gpu/experts.py: each pair's expert output, not yet weighted; zeros for ids outside the stack."""
    rows, places = ids.shape
    out = x.new_zeros(rows * places, down.shape[1])
    width = down.shape[2]
    blocks = -(-width // 128)
    for expert in ids.unique().tolist():
        if not 0 <= expert < len(down):
            continue
        pairs = (ids.flatten() == expert).nonzero().flatten()
        own = x[pairs // places]
        scales = (None, None) if gate_up_scale is None else gate_up_scale[expert].split([blocks, blocks])
        gate = linear(own, gate_up[expert, :width], scales[0], True)
        up = linear(own, gate_up[expert, width:], scales[1], True)
        inside = (gate / (1 + (-gate).exp()) * up).to(x.dtype)
        out[pairs] = linear(inside, down[expert], None if down_scale is None else down_scale[expert], False)
    return out


def choose(
    logits: Tensor, bias: Tensor, chosen: int, groups: int, kept: int, normed: bool, scaling: float, shared: int
) -> tuple[Tensor, Tensor]:
    """gpu/choose.py: expert ids, ascending, and weights; shared experts last."""
    scores = 1 / (1 + (-logits).exp())
    biased = scores + bias
    if kept < groups:
        grouped = biased.unflatten(1, (groups, -1))
        sums = grouped.sort(dim=2, descending=True).values[..., :2].sum(dim=2)
        best = sums.sort(dim=1, descending=True, stable=True).indices[:, :kept]
        dropped = torch.ones_like(sums, dtype=torch.bool).scatter_(1, best, False)
        biased = grouped.masked_fill(dropped[..., None], -torch.inf).flatten(1)
    ids = biased.sort(dim=1, descending=True, stable=True).indices[:, :chosen].sort(dim=1).values
    weights = scores.gather(1, ids)
    if normed:
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
    own = torch.arange(logits.shape[1], logits.shape[1] + shared, device=ids.device).expand(len(ids), -1)
    return torch.cat([ids, own], dim=1).int(), torch.cat([weights * scaling, own.float() * 0 + 1], dim=1)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """gpu/norms.py: x divided by its root mean square, rounded to its dtype, times the weight."""
    wide = x.float()
    scale = torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight.to(x.dtype)


def weigh(outputs: Tensor, weights: Tensor) -> Tensor:
    """gpu/norms.py: the weighted sum over a row's places, in order: [R places, H], [R, places] -> [R, H]."""
    by_place: Tensor = outputs.float().unflatten(0, weights.shape)
    total: Tensor = by_place[:, 0] * weights[:, :1]
    for place in range(1, weights.shape[1]):
        total = total + by_place[:, place] * weights[:, place : place + 1]
    return total.to(outputs.dtype)


def join_norm(
    hidden: Tensor, outputs: Tensor, weights: Tensor | None, norm_weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """gpu/norms.py: the residual stream plus the outputs, and its norm."""
    added = outputs if weights is None else weigh(outputs.float(), weights)
    stream = (hidden.float() + added.float()).to(hidden.dtype)
    return stream, norm(stream, norm_weight, eps)


def pair_norms(embedded: Tensor, hidden: Tensor, first: Tensor, second: Tensor, eps: float) -> Tensor:
    """gpu/norms.py: the input of an MTP module's projection."""
    return torch.cat([norm(embedded, first, eps), norm(hidden, second, eps)], dim=1)


def _rotated(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """x [R, .., r], rotated by its row's position."""
    cos, sin = table[positions.long()].unbind(1)  # [R, r]
    shape = (len(x), *[1] * (x.dim() - 2), -1)
    partner: Tensor = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x * cos.view(shape) + partner * sin.view(shape)


def latents(
    low: Tensor, query_norm: Tensor | None, latent_norm: Tensor, table: Tensor, positions: Tensor, slots: Tensor,
    cache: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """gpu/latents.py: returns the normed query; writes the cache."""
    rank, rope = len(latent_norm), table.shape[2]
    query, latent, key = low.split([low.shape[1] - rank - rope, rank, rope], dim=1)
    normed, rotated = norm(latent, latent_norm, eps).float(), _rotated(key.float(), table, positions)
    if cache.dtype == torch.uint8:
        parts = (*quantize_rows(normed), rotated.to(low.dtype))
        slot = torch.cat([part.view(torch.uint8) for part in parts], dim=1)
    else:
        slot = torch.cat([normed, rotated], dim=1).to(cache.dtype)
    writes = slots >= 0
    cache[slots[writes].long()] = slot[writes]
    return query.clone() if query_norm is None else norm(query, query_norm, eps)


def cached(cache: Tensor, slots: Tensor, rank: int, dtype: torch.dtype) -> Tensor:
    """Slots of a cache (gpu/slots.py) in float32, [n, D + r]."""
    found = cache[slots]
    if cache.dtype != torch.uint8:
        return found.float()
    sizes = [rank, 4 * -(-rank // 128)]
    values, scales, rotary = (part.contiguous() for part in found.split([*sizes, found.shape[1] - sum(sizes)], dim=1))
    latents = dequantized_rows(values.view(torch.float8_e4m3fn), scales.view(torch.float32))
    return torch.cat([latents, rotary.view(dtype).float()], dim=1)


def queries(q: Tensor, key_up: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """gpu/queries.py: queries projected to the latent space."""
    heads, nope, _ = key_up.shape
    own = q.float().unflatten(1, (heads, -1))
    latent = torch.einsum("rhn,hnd->rhd", own[..., :nope], key_up.float())
    return torch.cat([latent, _rotated(own[..., nope:], table, positions)], dim=2).to(q.dtype)


def mla(
    q: Tensor, cache: Tensor, tiles: Tensor, pages: Tensor, seen: Tensor, page_size: int, rank: int, scale: float,
    splits: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """gpu/mla.py: each split's softmax-weighted mean of the latents, and its log-sum-exp."""
    split = 512
    parts = torch.zeros(splits, *q.shape[:2], rank)
    logs = torch.full((splits, *q.shape[:2]), -1e30)
    for sequence, first, count in tiles.tolist():
        rows = slice(first, first + count)
        end = int(seen[rows, 1].max()) if count else 0
        slots = torch.arange(end)
        found = cached(cache, pages[sequence].long()[slots // page_size] * page_size + slots % page_size, rank, q.dtype)
        scores = torch.einsum("rhd,sd->rhs", q[rows].float(), found) * scale
        hidden = (slots < seen[rows, :1]) | (slots >= seen[rows, 1:])
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
        for number in range(-(-end // split)):
            own = slice(number * split, (number + 1) * split)
            logs[number, rows] = scores[..., own].logsumexp(dim=2).clamp(min=-1e30)
            weights = scores[..., own].softmax(dim=2).nan_to_num(0)
            parts[number, rows] = torch.einsum("rhs,sd->rhd", weights, found[own, :rank])
    return parts, logs


def values(parts: Tensor, logs: Tensor, seen: Tensor, value_up: Tensor) -> Tensor:
    """gpu/values.py: splits merged and projected out of the latent space."""
    weights = (logs - logs.amax(dim=0)).exp()
    mean = torch.einsum("srh,srhd->rhd", weights / weights.sum(dim=0), parts)
    return torch.einsum("rhd,hdv->rhv", mean, value_up.float()).flatten(1).to(value_up.dtype)


def draw(logits: Tensor, temperatures: Tensor, keys: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """gpu/draw.py: the two best scores of each row, and the id of the best."""
    scores = logits.double()
    drawn = temperatures > 0
    noise = sampled_noise(keys, first + logits.shape[1])[:, first:]
    scores = torch.where(drawn[:, None], scores / temperatures.where(drawn, 1.0)[:, None] + noise, scores)
    best = functional.pad(scores, (0, 1), value=-torch.inf).topk(2, dim=1).values
    return best, scores.max(dim=1).indices + first
