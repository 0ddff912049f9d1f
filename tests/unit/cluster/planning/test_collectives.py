import numpy as np
import pytest

from outrider.cluster.planning.collectives import RoundShape, widest
from outrider.cluster.planning.efficiency import Workload
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.shapes import Shapes
from outrider.cluster.planning.split import Split

SCOUT = Shapes.of(load_shape("scout"), "float32")
R1 = Shapes.of(load_shape("deepseek-r1"))


def of(shapes: Shapes, split: Split, rows: int, numerics: str = "exact") -> RoundShape:
    return RoundShape(shapes, split, Workload(numerics=numerics), rows)


def sizes(collectives: list) -> dict[str, float]:  # type: ignore[type-arg]
    return {one.purpose: one.bytes for one in collectives}


def test_one_rank_has_nobody_to_talk_to() -> None:
    alone = of(SCOUT, Split(), 5)

    assert [*alone.attention(), *alone.dense(), *alone.experts(), *alone.embedding(), *alone.head("logits")] == []


def test_a_tensor_group_gathers_outputs_and_never_sums() -> None:
    """scout: 128 low-rank queries, 512 + 64 latents, 4 heads of 64 values, a stream of 256, all in float32."""
    shape = of(SCOUT, Split(tensor=2), rows=3)

    assert sizes(shape.attention()) == {"latents": 3 * 352 * 4, "heads": 3 * 128 * 4, "attention": 3 * 128 * 4}
    assert sizes(shape.dense()) == {"inner": 3 * 384 * 4, "outputs": 3 * 128 * 4}
    # two routed experts and the shared one, 128 wide each, for every row
    assert sizes(shape.experts()) == {"inner": 3 * 3 * 64 * 4, "outputs": 3 * 128 * 4}
    assert sizes(shape.head("logits")) == {"logits": 3 * 2048 * 4}


def test_whole_experts_send_outputs_back_by_the_columns_that_ranks_own() -> None:
    shape = of(SCOUT, Split(tensor=2, expert=2), rows=3)

    # 3 rows x 2 experts, half of them elsewhere, half of 256 columns each
    assert sizes(shape.experts()) == {
        "pairs_to_owners": 3 * 2 * 128 * 4 / 2,
        "inner": 3 * 64 * 4,
        "outputs": 3 * 128 * 4,
    }


def test_r1_attention_moves_more_than_an_all_reduce_for_exactness() -> None:
    exact = sizes(of(R1, Split(tensor=8), rows=1).attention())
    fast = sizes(of(R1, Split(tensor=8), rows=1, numerics="fast").attention())

    received = 7 * (exact["heads"] + exact["attention"])  # of the other seven
    assert received / (2 * 7 / 8 * fast["attention"]) == pytest.approx(1.6, rel=0.05)  # a ring's bytes


@pytest.mark.parametrize("split", [Split(data=4, expert=4), Split(data=2, tensor=2, expert=4)])
def test_a_row_travels_once_to_each_rank_that_it_chose_an_expert_of(split: Split) -> None:
    """Against routing at random, counted."""
    random, rows = np.random.default_rng(0), 20_000
    choices = np.argsort(random.random((rows, 8)), axis=1)[:, :2]  # two of eight experts
    ranks = choices // (8 // split.stage_size)
    others = [data * split.tensor for data in range(1, split.data)]  # at this rank's place in other groups
    sent = sum(int((ranks == rank).any(axis=1).sum()) for rank in others)
    returned = int((ranks != 0).sum()) / split.tensor  # pairs made elsewhere: each rank of the group gets its columns

    found = sizes(of(SCOUT, split, rows).experts())

    assert found["rows_to_experts"] == pytest.approx(sent * (256 * 4 + 2 * 4), rel=0.02)
    assert found["pairs_to_owners"] == pytest.approx(returned * 256 * 4, rel=0.02)
    assert found["counts"] == split.stage_size * 8


@pytest.mark.parametrize(
    ("size", "parts", "unit", "width"), [(704, 2, 1, 352), (10, 4, 1, 3), (576, 2, 128, 384), (576, 5, 128, 128)]
)
def test_slices_differ_by_a_unit_at_most(size: int, parts: int, unit: int, width: int) -> None:
    assert widest(size, parts, unit) == width
