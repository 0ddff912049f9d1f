"""Parts of a round and of an engine's time add up to the whole; bytes are those that a product reads."""

import pytest

from benchmarks.engine.round_parts import engine_parts, stage_parts
from benchmarks.kernels.linears import weight_bytes
from outrider.kernels.cpu.library import BFLOAT16, FLOAT32, INT8, LinearStruct


def test_the_parts_of_a_round_add_up_to_it() -> None:
    short = {"nothing": 10.0, "attention": 100.0, "dense": 130.0, "layers": 200.0, "round": 220.0}

    parts = stage_parts(short, over_cache=50.0)

    assert parts["router, routed experts"] == 70.0
    assert sum(parts.values()) == pytest.approx(220.0 + 50.0)


def test_compiled_calls_are_taken_out_of_the_parts_they_are_in() -> None:
    by_part = {"schedule": 1.0, "forward": 10.0, "draft": 4.0}

    parts = engine_parts(by_part, {"stage": 6.0, "sample": 2.0, "draft": 3.0}, whole=17.0)

    assert (parts["forward"], parts["draft"], parts["rest"]) == (2.0, 1.0, 2.0)
    assert sum(parts.values()) == pytest.approx(17.0)
    assert by_part["forward"] == 10.0


@pytest.mark.parametrize(
    ("kind", "size"), [(FLOAT32, 64 * 256 * 4), (BFLOAT16, 64 * 256 * 2), (INT8, 64 * (256 + 2 * 4))]
)
def test_a_product_reads_whole_panels_and_its_scales(kind: int, size: int) -> None:
    assert weight_bytes(LinearStruct(kind=kind, outputs=40, inputs=256)) == size


def test_a_product_that_is_not_there_reads_nothing() -> None:
    assert weight_bytes(LinearStruct()) == 0
