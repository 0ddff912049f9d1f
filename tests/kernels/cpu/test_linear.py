"""Products over packed weights: float64's within rounding, and each row's bits its own."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.cpu.context import Context
from outrider.kernels.cpu.library import BFLOAT16, FLOAT32, INT8, ROUNDED, STRETCH_8
from outrider.kernels.cpu.packing import Arena, packed

KINDS = {"float32": FLOAT32, "bf16": BFLOAT16, "int8": INT8, "rounded": ROUNDED}
INPUTS = (1, 2, 17, 127, 128, 129, 1023, 1024, 1025, 2500)
OUTPUTS = (1, 31, 32, 33, 200)
ROWS = (*range(1, 10), 20, 130)
ROUNDING = 2e-6  # of the sum of the magnitudes that are added up


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(1)


@pytest.fixture(scope="module")
def arena() -> Arena:
    return Arena()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_8_bits(values: Tensor) -> Tensor:
    """What `values` [n, inputs] are once a scale and 8 bits stand for each stretch of them, float64."""
    return torch.from_numpy(reference.dequantized_int8(values.float().numpy(), STRETCH_8))


def as_kept(weight: Tensor, kind: str) -> Tensor:
    """What `weight` [outputs, inputs] is once it is packed, float64."""
    if kind in ("int8", "rounded"):
        return in_8_bits(weight)
    return weight.bfloat16().double() if kind == "bf16" else weight.double()


def as_met(x: Tensor, kind: str) -> Tensor:
    """What inputs `x` [n, inputs] count as, float64."""
    return in_8_bits(x) if kind == "rounded" else x.double()


def assert_products(context: Context, arena: Arena, weight: Tensor, kind: str, x: Tensor) -> None:
    got = context.linear(packed(arena, weight, KINDS[kind]), x)
    kept, met = as_kept(weight, kind), as_met(x, kind)
    wanted, magnitudes = met @ kept.T, met.abs() @ kept.abs().T
    assert got.shape == wanted.shape
    assert ((got.double() - wanted).abs() <= ROUNDING * magnitudes + 1e-30).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_a_product_is_float64s_of_the_kept_weights_within_rounding(
    context: Context, arena: Arena, inputs: int, kind: str
) -> None:
    for outputs in OUTPUTS:
        for seed, rows in enumerate((1, 3, 9)):
            assert_products(context, arena, drawn(outputs, inputs, seed=seed), kind, drawn(rows, inputs, seed=9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS)
def test_a_product_of_many_rows_is_float64s_within_rounding(
    context: Context, arena: Arena, rows: int, kind: str
) -> None:
    assert_products(context, arena, drawn(65, 300), kind, drawn(rows, 300, seed=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_may_come_in_either_type_and_any_layout(
    context: Context, arena: Arena, stored: torch.dtype, kind: str
) -> None:
    weight = drawn(70, 40).to(stored)

    assert_products(context, arena, weight, kind, drawn(2, 40, seed=1))
    assert_products(context, arena, weight.t(), kind, drawn(2, 70, seed=1))
    assert_products(context, arena, weight[5:50, 3:30], kind, drawn(2, 27, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_laid_out_in_any_way(context: Context, arena: Arena, kind: str) -> None:
    linear = packed(arena, drawn(33, 20), KINDS[kind])
    x = drawn(20, 6)

    assert torch.equal(context.linear(linear, x.t()), context.linear(linear, x.t().contiguous()))
    assert torch.equal(context.linear(linear, drawn(9, 20)[::2]), context.linear(linear, drawn(9, 20)[::2].clone()))
    assert context.linear(linear, drawn(0, 20)).shape == (0, 33)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(200, 129), (33, 2500), (31, 17), (1, 1025)])
def test_a_rows_bits_are_its_own_whatever_rows_come_with_it(
    context: Context, arena: Arena, outputs: int, inputs: int, kind: str
) -> None:
    linear = packed(arena, drawn(outputs, inputs), KINDS[kind])
    x = drawn(max(ROWS), inputs, seed=1)
    alone = torch.cat([context.linear(linear, row[None]) for row in x])

    for rows in ROWS:
        assert torch.equal(context.linear(linear, x[:rows]), alone[:rows]), rows
        assert torch.equal(context.linear(linear, x[-rows:]), alone[-rows:]), rows
    assert torch.equal(context.linear(linear, x.flip(0)), alone.flip(0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(arena: Arena, kind: str) -> None:
    linear = packed(arena, drawn(200, 1100), KINDS[kind])
    contexts = [Context(threads) for threads in (1, 2, 3, 4, 7)]

    for rows in (1, 2, 5, 97, 200):
        first, *others = (context.linear(linear, drawn(rows, 1100)) for context in contexts)
        assert all(torch.equal(first, other) for other in others), rows


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_has_the_bits_that_it_has_in_any_slice_of_the_weight(
    context: Context, arena: Arena, kind: str
) -> None:
    """So outputs may be split over ranks."""
    weight, x = drawn(200, 1030), drawn(3, 1030, seed=1)
    whole = context.linear(packed(arena, weight, KINDS[kind]), x)

    for first, end in itertools.pairwise((0, 1, 40, 104, 200)):
        part = context.linear(packed(arena, weight[first:end], KINDS[kind]), x)
        assert torch.equal(part, whole[:, first:end])


def weights_of(context: Context, arena: Arena, weight: Tensor, kind: str) -> Tensor:
    """What is kept, read through one-hot rows: exact, for the other products are zeros. [outputs, inputs]."""
    linear = packed(arena, weight, KINDS[kind])
    return context.linear(linear, torch.eye(weight.shape[1])).T


def test_float32_weights_are_kept_as_they_are(context: Context, arena: Arena) -> None:
    weight = drawn(45, 131) * torch.logspace(-30, 30, 131)

    assert torch.equal(weights_of(context, arena, weight, "float32"), weight)


def test_float32_weights_that_bfloat16_holds_are_kept_in_it_and_give_the_same_bits(
    context: Context, arena: Arena
) -> None:
    held = drawn(40, 1027).bfloat16().float()
    wide = held.clone()
    wide[7, 3] += 1e-6  # no longer
    x = drawn(5, 1027, seed=1)
    linears = [packed(arena, weight, FLOAT32) for weight in (held, wide)]

    narrow, full = (context.linear(linear, x) for linear in linears)

    assert [linear.kind for linear in linears] == [BFLOAT16, FLOAT32]
    others = torch.arange(40) != 7
    assert torch.equal(narrow[:, others], full[:, others])


def test_bfloat16_weights_are_the_nearest_with_ties_to_even(context: Context, arena: Arena) -> None:
    """Halves of the last place, up and down, besides what is drawn: as torch rounds."""
    bits = torch.arange(0x3F800000, 0x3F800000 + 64 * 0x4000, 0x4000, dtype=torch.int32)  # quarters of the last place
    weight = torch.cat([bits.view(torch.float32), -bits.view(torch.float32), drawn(127)])[None].repeat(3, 1)

    assert torch.equal(weights_of(context, arena, weight, "bf16"), weight.bfloat16().float())


@pytest.mark.parametrize("inputs", [1, 127, 128, 129, 300])
def test_int8_weights_are_the_plain_twins(context: Context, arena: Arena, inputs: int) -> None:
    weight = drawn(35, inputs) * torch.logspace(-3, 3, 35)[:, None]

    twins = torch.from_numpy(reference.dequantized_int8(weight.numpy(), STRETCH_8)).float()

    assert torch.equal(weights_of(context, arena, weight, "int8"), twins)


def test_an_int8_weight_is_off_by_at_most_half_a_step_of_its_own_stretch(context: Context, arena: Arena) -> None:
    """An outlier coarsens its own 128 inputs of its own output, and no others."""
    weight = drawn(4, 300)
    weight[1, 140] = 1000.0

    kept = weights_of(context, arena, weight, "int8").double()

    stretches = [slice(first, first + STRETCH_8) for first in range(0, 300, STRETCH_8)]
    for part in stretches:
        most = weight[:, part].abs().amax(dim=1, keepdim=True).double()
        assert ((kept[:, part] - weight[:, part].double()).abs() <= most / 127 / 2 * (1 + 1e-5)).all()
        largest = weight[:, part].abs().argmax(dim=1, keepdim=True)
        torch.testing.assert_close(kept[:, part].gather(1, largest).float(), weight[:, part].gather(1, largest))


def test_int8_weights_of_zero_stay_zero_and_taint_nothing(context: Context, arena: Arena) -> None:
    weight = drawn(33, 256)
    weight[3], weight[5, :128] = 0.0, 0.0

    kept = weights_of(context, arena, weight, "int8")

    assert not kept[3].any()
    assert not kept[5, :128].any()
    assert kept[5, 128:].any()
    assert torch.isfinite(kept).all()


def test_an_int8_product_is_near_the_float32_one(context: Context, arena: Arena) -> None:
    weight, x = drawn(64, 1000), drawn(8, 1000, seed=1)

    got = context.linear(packed(arena, weight, INT8), x)

    errors = (got - x @ weight.T).norm(dim=1) / (x @ weight.T).norm(dim=1)
    assert 1e-3 < errors.max() < 0.01  # not zero: the weights are in 8 bits


def test_a_row_of_zeros_gives_zeros_and_taints_no_other(context: Context, arena: Arena) -> None:
    linear, x = packed(arena, drawn(40, 300), ROUNDED), drawn(3, 300, seed=1)
    x[1], x[2, :128] = 0.0, 0.0

    got = context.linear(linear, x)

    assert not got[1].any()
    assert torch.equal(got[0], context.linear(linear, x[:1])[0])
    assert torch.isfinite(got).all()


def test_products_of_several_linears_in_one_arena_do_not_disturb_one_another(context: Context, arena: Arena) -> None:
    weights = [drawn(50 + i, 129, seed=i) for i in range(2 * len(KINDS))]
    linears = [packed(arena, weight, kind) for weight, kind in zip(weights, [*KINDS.values()] * 2, strict=True)]
    x = drawn(3, 129, seed=99)

    for (name, _), weight, linear in zip([*KINDS.items()] * 2, weights, linears, strict=True):
        wanted = as_met(x, name) @ as_kept(weight, name).T
        np.testing.assert_allclose(context.linear(linear, x), wanted, rtol=1e-4, atol=1e-4)
