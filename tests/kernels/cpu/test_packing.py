"""Where packed weights go: the order of outputs, and the memory that they share."""

import ctypes
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.kernels.cpu.context import Context
from outrider.kernels.cpu.library import BFLOAT16, FLOAT32, INT8, LANES, PANEL, ROUNDED
from outrider.kernels.cpu.packing import Arena, gates_beside_ups, give_back, in_order, kind_of, packed

CHUNK = 64 << 20  # an arena grows by this, or by what it is asked for


@given(st.integers(1, 200))
def test_outputs_in_order_are_filled_up_to_whole_panels(outputs: int) -> None:
    order = in_order(outputs)

    assert len(order) == -(-outputs // PANEL) * PANEL
    assert order[:outputs].tolist() == list(range(outputs))
    assert (order[outputs:] == -1).all()


@given(st.integers(1, 200))
def test_each_panel_holds_gates_and_in_its_second_half_their_ups(width: int) -> None:
    halves = gates_beside_ups(width).reshape(-1, 2, LANES)

    gates, ups = halves[:, 0].ravel(), halves[:, 1].ravel()
    assert len(halves) == -(-width // LANES)
    assert gates[gates >= 0].tolist() == list(range(width))
    assert (ups == np.where(gates < 0, -1, gates + width)).all()


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, INT8, ROUNDED])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 33, 64])
def test_a_product_gives_outputs_in_the_order_asked_for_and_zeros_between(width: int, kind: int) -> None:
    weight = torch.arange(1.0, 2 * width + 1)[:, None].repeat(1, 3)
    order, arena = gates_beside_ups(width), Arena()

    linear = packed(arena, weight, kind, order)
    got = Context(1).linear(linear, torch.tensor([[0.0, 1.0, 0.0]]))[0]

    last = int(np.flatnonzero(order >= 0)[-1])
    assert len(got) == linear.outputs == last + 1
    np.testing.assert_allclose(got, np.where(order < 0, 0, order + 1)[: last + 1], rtol=1e-6)


def test_a_head_cut_to_some_tokens_gives_their_logits_in_their_order() -> None:
    weight, ids = torch.randn(300, 20), np.array([0, 3, 4, 77, 298, 299], dtype=np.int32)
    places = in_order(len(ids))
    order = np.where(places < 0, places, ids[places]).astype(np.int32)
    x, arena, context = torch.randn(4, 20), Arena(), Context(1)

    cut, whole = (context.linear(packed(arena, weight, FLOAT32, o), x) for o in (order, None))

    assert torch.equal(cut, whole[:, ids])


@pytest.mark.parametrize(
    ("dtype", "quantization", "kind"),
    [
        (torch.float32, None, FLOAT32),
        (torch.bfloat16, None, BFLOAT16),
        (torch.float32, "int8", INT8),
        (torch.bfloat16, "int8", INT8),
    ],
)
def test_weights_are_kept_in_the_models_type_or_in_8_bits(
    dtype: torch.dtype, quantization: str | None, kind: int
) -> None:
    assert kind_of(dtype, quantization) == kind


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 5000), st.just(CHUNK - 4096), st.just(CHUNK + 1)), min_size=1, max_size=8))
def test_what_an_arena_gives_is_aligned_zeroed_and_apart(sizes: list[int]) -> None:
    arena = Arena()
    spans = [(arena.take(size), size) for size in sizes]

    assert all(address % 64 == 0 for address, _ in spans)
    for number, (address, size) in enumerate(spans):
        ends = (ctypes.c_uint8 * 1).from_address(address), (ctypes.c_uint8 * 1).from_address(address + size - 1)
        assert [end[0] for end in ends] == [0, 0], number
        for end in ends:
            end[0] = 255
    ordered = sorted(spans)
    for (address, size), (following, _) in itertools.pairwise(ordered):
        assert address + size <= following


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, INT8, ROUNDED])
def test_what_is_given_back_is_taken_again_by_what_is_as_large(kind: int) -> None:
    arena, weight = Arena(), torch.randn(40, 130)
    first, kept = packed(arena, weight, kind), packed(arena, weight + 1, kind)
    give_back(arena, first)

    other = packed(arena, weight - 1, kind)

    assert (other.panels, other.scales) == (first.panels, first.scales)
    x = torch.randn(3, 130)
    context, elsewhere = Context(1), Arena()
    wanted = [context.linear(packed(elsewhere, each, kind), x) for each in (weight - 1, weight + 1)]
    assert torch.equal(context.linear(other, x), wanted[0])
    assert torch.equal(context.linear(kept, x), wanted[1])
