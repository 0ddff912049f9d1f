"""Each kernel of kernels/gpu against its twin, in Triton's interpreter, at R1's shapes on small grids."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from gpu.interpreted import drawn, error, fp8, same
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu import (
    choose,
    draw,
    experts,
    gather,
    latents,
    linear,
    mla,
    norms,
    quantize,
    queries,
    reduce,
    sort,
    values,
)
from outrider.kernels.gpu.slots import slot_shape
from outrider.kernels.sampling import noise_bits, row_key, sequence_key
from outrider.workers.model.rotary import rotary_table
from outrider.workers.types.model.model_config import ModelConfig

FULL = pytest.mark.full
ROPE, RANK = 64, 512
_SIZES = {"qk_rope_head_dim": ROPE, "rope_theta": 10000.0, "yarn": None, "max_position_embeddings": 8192}


@pytest.fixture(scope="module")
def table() -> Tensor:
    shape = object.__new__(ModelConfig)
    for name, value in _SIZES.items():
        object.__setattr__(shape, name, value)
    return torch.from_numpy(rotary_table(shape))


def test_8_bit_activations_are_rounded_to_the_nearest() -> None:
    x = drawn(5, 300) * torch.logspace(-4, 4, 300)
    (found, scales), (wanted, wanted_scales) = quantize.launch(x), reference.quantize_rows(x)

    assert error(scales, wanted_scales) < 1e-6
    assert (found.view(torch.uint8) != wanted.view(torch.uint8)).float().mean() < 1e-3  # x over its scale, at a tie
    assert error(reference.dequantized_rows(found, scales), x) < 2**-4


@pytest.mark.parametrize("rows", [1, 4, pytest.param(17, marks=FULL), pytest.param(70, marks=FULL)])
def test_a_product_of_fp8_weights(rows: int) -> None:
    x, (weight, scale) = drawn(rows, 7168), fp8(192, 7168, seed=2)
    exact = x.double() @ reference.dequantized(weight, scale).double().T

    found = linear.launch(x, weight, scale, False)
    assert error(found, reference.linear(x, weight, scale, False)) < 1e-3  # ties rounded differently
    assert error(found, exact) < 0.03  # the error of FP8 activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_product_of_wide_weights(dtype: torch.dtype) -> None:
    x, weight = drawn(3, 1000, dtype=dtype), drawn(72, 1000, seed=1, dtype=dtype)

    assert error(linear.launch(x, weight, None, True), x.double() @ weight.double().T) < 1e-5


def test_a_product_is_batch_invariant() -> None:
    x, (weight, scale) = drawn(130, 384), fp8(64, 384, seed=3)
    whole = linear.launch(x, weight, scale, True)  # x quantised by its own launch, 128 rows per program

    for first, end in pairwise((0, 1, 4, 40, 104)):  # while it is loaded, 16 to 64 rows per program
        assert torch.equal(linear.launch(x[first:end], weight, scale, True), whole[first:end])


def _chosen(rows: int, among: int, places: int, seed: int = 0) -> Tensor:
    scores = torch.rand(rows, among, generator=torch.Generator().manual_seed(seed))
    return scores.argsort(dim=1)[:, :places].sort(dim=1).values.int()


@pytest.mark.parametrize(("rows", "quantised"), [(4, True), (3, False), pytest.param(70, True, marks=FULL)])
def test_experts_of_rows(rows: int, quantised: bool) -> None:
    ids, x = _chosen(rows, 6, 4), drawn(rows, 256, seed=1)
    gate_up, down = fp8(5, 256, 256, seed=2), fp8(5, 192, 128, seed=4)
    if not quantised:
        gate_up, down = (drawn(5, 200, 256, seed=2) / 16, None), (drawn(5, 192, 100, seed=4) / 10, None)

    found = experts.launch(x, ids, *gate_up, *down, False)
    assert error(found, reference.experts(x, ids, *gate_up, *down, False)) < 0.006
    assert (found.view(rows, 4, -1)[ids == 5] == 0).all()  # which is outside the stack


def test_experts_are_batch_invariant() -> None:
    ids, x = _chosen(66, 4, 2), drawn(66, 128, seed=1)
    gate_up, down = fp8(4, 256, 128, seed=2), fp8(4, 128, 128, seed=4)
    whole = experts.launch(x, ids, *gate_up, *down, True).view(66, 2, -1)  # sorted

    for first, end in pairwise((0, 1, 5)):
        alone = experts.launch(x[first:end], ids[first:end], *gate_up, *down, True)
        assert torch.equal(alone.view(-1, 2, 128), whole[first:end])


def test_pairs_are_sorted_by_expert_and_row() -> None:
    ids = torch.randint(-1, 9, (400, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    (order, starts), (wanted, wanted_starts) = sort.launch(ids, 8), reference.sort_pairs(ids, 8)

    assert torch.equal(starts, wanted_starts)
    assert torch.equal(order[: starts[-1]], wanted[: starts[-1]])


def test_r1s_router_chooses_the_twins_experts() -> None:
    logits, bias = drawn(10_000, 256), 0.1 * drawn(256, seed=1)
    logits[::7] = logits[::7].round()  # rows with many ties
    (ids, weights), (wanted, wanted_weights) = (
        way(logits, bias * (torch.arange(256) % 2), 8, 8, 4, True, 2.5, 1) for way in (choose.launch, reference.choose)
    )

    assert torch.equal(ids, wanted)
    assert error(weights, wanted_weights) < 1e-6


def test_a_router_without_groups() -> None:
    logits, bias = drawn(20, 10), drawn(10, seed=1)
    ids, weights = choose.launch(logits, bias, 3, 1, 1, False, 1.0, 0)

    assert same([ids], [reference.choose(logits, bias, 3, 1, 1, False, 1.0, 0)[0]])
    assert error(weights, logits.sigmoid().gather(1, ids.long())) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_norms_with_the_residual_add_before_them(dtype: torch.dtype) -> None:
    hidden, outputs = drawn(3, 7168, dtype=dtype), drawn(3 * 9, 7168, seed=1, dtype=dtype)
    weights, norm = drawn(3, 9, seed=2).abs(), drawn(7168, seed=3, dtype=dtype)
    room = 1e-5 if dtype == torch.float32 else 2e-3

    pairs = [
        (norms.launch_join_norm, reference.join_norm, (hidden, outputs, weights, norm, 1e-6)),
        (norms.launch_join_norm, reference.join_norm, (hidden, outputs[:3], None, norm, 1e-6)),
        (norms.launch_pair_norms, reference.pair_norms, (hidden, outputs[:3].contiguous(), norm, norm, 1e-6)),
        (norms.launch_norm, reference.norm, (hidden, norm, 1e-6)),
        (norms.launch_weigh, reference.weigh, (outputs, weights)),
    ]
    for launch, twin, arguments in pairs:
        found, wanted = launch(*arguments), twin(*arguments)
        parts = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
        assert all(error(*part) < room for part in parts), launch


def test_latents_are_written_to_their_slots(table: Tensor) -> None:
    low, positions = drawn(4, 1536 + RANK + ROPE), torch.tensor([0, 5, 77, 4000], dtype=torch.int32)
    slots = torch.tensor([3, -1, 9, 0], dtype=torch.int32)
    caches = torch.zeros(2, 10, RANK + ROPE)
    ways = (latents.launch, reference.latents)
    found, wanted = (
        way(low, drawn(1536, seed=1), drawn(RANK, seed=2), table, positions, slots, cache, 1e-6)
        for way, cache in zip(ways, caches, strict=True)
    )

    assert error(found, wanted) < 1e-5
    assert error(*caches) < 1e-5
    assert sorted(caches[0].any(dim=1).nonzero().flatten().tolist()) == [0, 3, 9]


@pytest.mark.parametrize("rank", [RANK, 64])
def test_latents_are_written_in_fp8_with_scales(table: Tensor, rank: int) -> None:
    low, positions = drawn(4, 96 + rank + ROPE) * 3, torch.tensor([0, 5, 77, 4000], dtype=torch.int32)
    slots = torch.tensor([3, -1, 9, 0], dtype=torch.int32)
    width, dtype = slot_shape(rank, ROPE, torch.float32, fp8=True)
    caches, exact = torch.zeros(2, 10, width, dtype=dtype), torch.zeros(10, rank + ROPE)
    arguments = (low, drawn(96, seed=1), drawn(rank, seed=2), table, positions, slots)
    for way, cache in ((latents.launch, caches[0]), (reference.latents, caches[1]), (reference.latents, exact)):
        way(*arguments, cache, 1e-6)
    found, wanted = (reference.cached(cache, torch.arange(10), rank, torch.float32) for cache in caches)

    assert error(found, wanted) < 2**-4  # ties
    assert (found != wanted).float().mean() < 1e-3
    assert error(found[:, :rank], exact[:, :rank]) < 2**-4
    assert error(found[:, rank:], exact[:, rank:]) < 1e-6


def test_queries_are_projected_to_the_latent_space(table: Tensor) -> None:
    q, key_up = drawn(5, 3 * (128 + ROPE)), drawn(3, 128, RANK, seed=1)
    positions = torch.tensor([0, 5, 77, 4000, 1], dtype=torch.int32)

    assert error(*(way(q, key_up, table, positions) for way in (queries.launch, reference.queries))) < 1e-5


def _cached(counts: list[int], contexts: list[int], heads: int, dtype: torch.dtype, page: int = 16) -> list[Tensor]:
    """q, cache, tiles, pages and seen. Sequence i has counts[i] rows after contexts[i] slots, on shuffled pages."""
    lengths = [context + count for context, count in zip(contexts, counts, strict=True)]
    each = -(-max(lengths) // page)
    order = torch.randperm(each * len(counts) + 3, generator=torch.Generator().manual_seed(1)).int()
    tiles, seen, row = [], [], 0
    for sequence, (count, context) in enumerate(zip(counts, contexts, strict=True)):
        firsts = range(0, count, mla.QUERIES)
        tiles += [[sequence, row + first, min(mla.QUERIES, count - first)] for first in firsts]
        seen += [[sequence % 2, context + j + 1] for j in range(count)]
        row += count
    q, cache = drawn(row, heads, RANK + ROPE, dtype=dtype), drawn(len(order) * page, RANK + ROPE, seed=2, dtype=dtype)
    ints = (torch.tensor(each, dtype=torch.int32) for each in (tiles, seen))
    return [q, cache, next(ints), order[: each * len(counts)].view(len(counts), each).contiguous(), next(ints)]


def _attended(way: object, joined: object, case: list[Tensor], value_up: Tensor, splits: int, page: int = 16) -> Tensor:
    q, cache, tiles, pages, seen = case
    parts, logs = way(q, cache, tiles, pages, seen, page, RANK, 0.135 / 4, splits)  # type: ignore[operator]
    return joined(parts, logs, seen, value_up)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    ("counts", "contexts"),
    [
        ([1], [1]),
        ([4, 1], [70, 3]),
        ([17], [600]),
        pytest.param([4], [4092], marks=FULL),
        pytest.param(list(range(1, 18)), list(range(1, 4096, 254)), marks=FULL, id="1..17 rows, context 1..4096"),
    ],
)
def test_attention_over_shuffled_pages(counts: list[int], contexts: list[int]) -> None:
    case, value_up = _cached(counts, contexts, 16, torch.float32), drawn(16, RANK, 128, seed=5) / 20
    splits = -(-(max(contexts) + max(counts)) // mla.SPLIT)
    found = _attended(mla.launch, values.launch, case, value_up, splits)

    assert error(found, _attended(reference.mla, reference.values, case, value_up, splits)) < 1e-4
    assert error(found, _plain_attention(case, value_up)) < 1e-3


def _in_fp8(cache: Tensor) -> Tensor:
    """The cache in FP8: 656 bytes per slot, if its rotary keys are in 16 bits."""
    parts = (*reference.quantize_rows(cache[:, :RANK]), cache[:, RANK:].contiguous())
    return torch.cat([part.view(torch.uint8) for part in parts], dim=1)


@pytest.mark.parametrize("page", [16, 64])
def test_attention_over_an_fp8_cache(page: int) -> None:
    case, value_up = _cached([4, 1], [530, 3], 16, torch.float32, page), drawn(16, RANK, 128, seed=5) / 20
    q, cache, tiles, pages, seen = case
    packed = _in_fp8(cache)
    unpacked = reference.cached(packed, torch.arange(len(cache)), RANK, torch.float32)
    found = _attended(mla.launch, values.launch, [q, packed, tiles, pages, seen], value_up, 2, page)

    assert (
        error(found, _attended(reference.mla, reference.values, [q, packed, tiles, pages, seen], value_up, 2, page))
        < 1e-4
    )
    assert (
        error(found, _attended(reference.mla, reference.values, [q, unpacked, tiles, pages, seen], value_up, 2, page))
        < 1e-4
    )
    assert error(found, _attended(reference.mla, reference.values, case, value_up, 2, page)) < 0.05  # of 8 bits


@pytest.mark.usefixtures("dots_in_float64")
def test_attention_over_an_fp8_cache_is_batch_invariant() -> None:
    case, value_up = _cached([3, 2], [515, 40], 16, torch.float16), drawn(16, RANK, 64, seed=5, dtype=torch.float16)
    q, cache, tiles, pages, seen = case
    packed = _in_fp8(cache)
    whole = _attended(mla.launch, values.launch, [q, packed, tiles, pages, seen], value_up, 2)
    alone = [q[1:2], packed, torch.tensor([[0, 0, 1]], dtype=torch.int32), pages, seen[1:2]]

    assert packed.shape[1] == 656
    assert torch.equal(_attended(mla.launch, values.launch, alone, value_up, 3), whole[1:2])


def _plain_attention(case: list[Tensor], value_up: Tensor) -> Tensor:
    """Row by row, in float64."""
    q, cache, tiles, pages, seen = case
    out = torch.zeros(len(q), value_up.shape[0], value_up.shape[2], dtype=torch.float64)
    for sequence, first, count in tiles.tolist():
        for row in range(first, first + count):
            slots = torch.arange(*seen[row].tolist())
            found = cache[pages[sequence].long()[slots // 16] * 16 + slots % 16].double()
            weights = (q[row].double() @ found.T * (0.135 / 4)).softmax(dim=1)
            out[row] = torch.einsum("hd,hdv->hv", weights @ found[:, :RANK], value_up.double())
    return out.flatten(1)


def test_attention_is_batch_invariant() -> None:
    case, value_up = _cached([3, 2], [515, 40], 16, torch.float16), drawn(16, RANK, 64, seed=5, dtype=torch.float16)
    q, cache, _, pages, seen = case
    whole = _attended(mla.launch, values.launch, case, value_up, 2)
    alone = [q[1:2], cache, torch.tensor([[0, 0, 1]], dtype=torch.int32), pages, seen[1:2]]

    assert torch.equal(_attended(mla.launch, values.launch, alone, value_up, 3), whole[1:2])


def test_tokens_are_drawn_with_the_same_noise_as_on_a_cpu() -> None:
    logits = drawn(6, 5000)
    logits[:, 4000] = logits.max() + 1  # ties go to the lower id
    logits[:, 1234] = logits[:, 4000]
    temperatures = torch.tensor([0.0, 1.0, 0.8, 0.0, 2.0, 0.1], dtype=torch.float64)
    keys = torch.tensor([row_key(sequence_key(seed, 0), 10 * seed) for seed in range(6)])

    (best, ids), (wanted, wanted_ids) = (way(logits, temperatures, keys, 0) for way in (draw.launch, reference.draw))
    assert torch.equal(ids, wanted_ids)
    assert torch.equal(ids[[0, 3]], torch.tensor([1234, 1234]))
    assert error(best, wanted) < 1e-12


@FULL
def test_10_000_rows_draw_the_tokens_of_the_twin() -> None:
    rows = 10_000
    logits, temperatures = drawn(rows, 300), torch.linspace(0, 2, rows, dtype=torch.float64)
    keys = torch.tensor([row_key(sequence_key(row, row % 3), row) for row in range(rows)])

    assert torch.equal(*(way(logits, temperatures, keys, 0)[1] for way in (draw.launch, reference.draw)))


def test_slices_of_a_vocabulary_draw_the_same_token_as_the_whole() -> None:
    logits, temperatures = drawn(40, 3000), torch.full((40,), 0.7, dtype=torch.float64)
    keys = torch.tensor([row_key(sequence_key(seed, 1), 3) for seed in range(40)])
    whole = draw.launch(logits, temperatures, keys, 0)[1]
    slices = [(first, logits[:, first : first + 1000].contiguous()) for first in (0, 1000, 2000)]
    found = [draw.launch(part, temperatures, keys, first) for first, part in slices]
    best = torch.stack([scores[:, 0] for scores, _ in found]).argmax(dim=0)

    assert torch.equal(torch.stack([ids for _, ids in found]).gather(0, best[None])[0], whole)


def test_the_noise_has_the_same_bits_as_on_a_cpu() -> None:
    keys = [row_key(sequence_key(seed, 0), seed) for seed in (0, 7, 2**63)]
    wanted = noise_bits(torch.tensor(keys), 129_280).numpy()  # R1's vocabulary
    v = np.arange(129_280, dtype=np.int64)
    plain = getattr(draw.noise_bits, "fn", draw.noise_bits)
    with np.errstate(over="ignore"):
        found = [plain(np.int64(key), v, *map(np.int64, draw.NOISE)) for key in keys]

    assert np.array_equal(found, wanted)


class _TwoRanks:
    """Rank 0's view of the memory of two ranks, in which rank 1 has already written its part of the first call."""

    def __init__(self, rows: int, row_bytes: int, theirs: Tensor) -> None:
        self.data = torch.zeros(2, 2, rows, row_bytes, dtype=torch.uint8)  # by rank and half
        self.flags = torch.zeros(2, 2, rows, 2, dtype=torch.int32)
        self.epochs = torch.zeros(rows, dtype=torch.int32)
        pointers = [[part.data_ptr() for part in memory] for memory in (self.data, self.flags)]
        self.addresses = torch.tensor(pointers)
        own = theirs.contiguous().view(torch.uint8)
        self.data[1, 1, :, : own.shape[1]] = own
        self.flags[0, 1, :, 1] = 1

    def assert_exchanged(self, own: Tensor) -> None:
        """Rank 0 wrote its part, set its flags on both ranks, and counted the call."""
        written = own.contiguous().view(torch.uint8)
        assert torch.equal(self.data[0, 1, :, : written.shape[1]], written)
        assert self.flags[:, 1, :, 0].tolist() == [[1] * len(own)] * 2
        assert self.epochs.tolist() == [1] * len(own)
        assert not self.data[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_all_ranks_are_gathered_in_rank_order(dtype: torch.dtype) -> None:
    own, theirs = drawn(3, 20, dtype=dtype), drawn(3, 20, seed=1, dtype=dtype)
    ranks = _TwoRanks(3, 200, theirs)
    found = gather.launch(own, ranks.addresses, ranks.epochs, 200, 0, "")

    assert torch.equal(found, torch.cat([own, theirs], dim=1))
    ranks.assert_exchanged(own)


def test_parts_of_all_ranks_are_added_up_joined_and_normed() -> None:
    hidden, outputs, norm = drawn(3, 72), drawn(3 * 4, 72, seed=1), drawn(72, seed=3)
    weights, theirs = drawn(3, 4, seed=2).abs(), drawn(3, 72, seed=4)
    ranks = _TwoRanks(3, 72 * 4, theirs)
    found = reduce.launch(hidden, outputs, weights, norm, 1e-6, ranks.addresses, ranks.epochs, 0, "")
    own = reference.weigh(outputs, weights)

    wanted = reference.join_norm(hidden, own + theirs, None, norm, 1e-6)
    assert all(error(*pair) < 1e-5 for pair in zip(found, wanted, strict=True))
    assert error(ranks.data[0, 1].view(torch.float32), own) < 1e-6
    assert ranks.flags[:, 1, :, 0].tolist() == [[1, 1, 1]] * 2
