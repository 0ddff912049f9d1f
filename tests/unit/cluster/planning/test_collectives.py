import numpy as np
import pytest
from exchanged import stage_volume

from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.collectives import RoundShape
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware, find_gpu
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.split import Split
from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.model.model_shapes import Shapes

SCOUT = Shapes.of(load_shape("scout"), "float32")
R1 = Shapes.of(load_shape("deepseek-r1"))


def of(shapes: Shapes, split: Split, rows: int, numerics: str = "exact") -> RoundShape:
    return RoundShape(shapes, split, Workload(numerics=numerics), rows)


def sizes(collectives: list) -> dict[str, float]:  # type: ignore[type-arg]
    return {one.purpose: one.bytes for one in collectives}


def test_one_rank_has_nobody_to_talk_to() -> None:
    alone = of(SCOUT, Split(), 5)

    assert [*alone.attention(), *alone.dense(), *alone.experts(), *alone.embedding(), *alone.head("stage")] == []


def test_a_tensor_group_gathers_outputs_and_never_sums() -> None:
    """scout: 128 low-rank queries, 512 + 64 latents, 4 heads of 64 values, a stream of 256, all in float32."""
    shape = of(SCOUT, Split(tensor=2), rows=3)

    assert sizes(shape.attention()) == {"latents": 3 * 352 * 4, "heads": 3 * 128 * 4, "attention outputs": 3 * 128 * 4}
    assert sizes(shape.dense()) == {"inner activations": 3 * 384 * 4, "layer outputs": 3 * 128 * 4}
    # two routed experts and the shared one, 128 wide each, for every row
    assert sizes(shape.experts()) == {"inner activations": 3 * 3 * 64 * 4, "layer outputs": 3 * 128 * 4}
    assert sizes(shape.head("stage")) == {"logits": 3 * 2048 * 4}


def test_whole_experts_send_outputs_back_by_the_columns_that_ranks_own() -> None:
    shape = of(SCOUT, Split(tensor=2, expert=2), rows=3)

    # 3 rows x 2 experts, half of them elsewhere, half of 256 columns each
    assert sizes(shape.experts()) == {
        "expert outputs": 3 * 2 * 128 * 4 / 2,
        "inner activations": 3 * 64 * 4,
        "layer outputs": 3 * 128 * 4,
    }


def test_r1_attention_moves_more_than_an_all_reduce_for_exactness() -> None:
    exact = sizes(of(R1, Split(tensor=8), rows=1).attention())
    fast = sizes(of(R1, Split(tensor=8), rows=1, numerics="fast").attention())

    received = 7 * (exact["heads"] + exact["attention outputs"])  # of the other seven
    assert received / (2 * 7 / 8 * fast["attention outputs"]) == pytest.approx(1.6, rel=0.05)  # a ring's bytes


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

    assert found["rows to experts"] == pytest.approx(sent * (256 * 4 + 2 * 4), rel=0.02)
    assert found["expert outputs"] == pytest.approx(returned * 256 * 4, rel=0.02)
    assert found["counts of rows"] == split.stage_size * 8


SPLITS = [
    Split(tensor=2),
    Split(tensor=4),
    Split(tensor=4, expert=4),
    Split(data=2),
    Split(data=4, expert=4),
    Split(data=2, tensor=2, expert=4),
    Split(pipeline=2, tensor=2, expert=2),
    Split(pipeline=3, data=2, expert=2),
]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("shapes", [SCOUT, R1], ids=["scout", "r1"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_round_is_counted_as_the_ranks_count_theirs(shapes: Shapes, split: Split, lanes: int) -> None:
    """tests/exchanged.py, which is held against what ranks really exchange, bit for bit."""
    rows = 6
    plan = Candidate(
        shapes, split, Workload(), Hardware(gpu=find_gpu("h200"), nodes=4, gpus_per_node=8), Efficiency(overlap=False)
    )
    counted = plan.collectives(rows, lanes)

    for stage, bounds in enumerate(plan.layer_splits):
        shard = Shard.of(split.parallel(), stage * split.stage_size, shapes.model)
        theirs = stage_volume(
            shapes.model,
            shard,
            range(*bounds),
            rows=rows,
            sampled=rows,
            all_rows=rows * split.data,
            value_bytes=shapes.value_bytes,
            lanes=lanes,
        )
        ours: dict[str, Traffic] = {}
        for one in (one for at, one in counted if at == stage):
            ours[one.purpose] = ours.get(one.purpose, Traffic()) + Traffic(int(one.count), int(one.count * one.bytes))
        assert {purpose: each.count for purpose, each in ours.items()} == {p: each.count for p, each in theirs.items()}
        for purpose, each in theirs.items():
            # theirs takes a row's choices as independent, ours as different ones
            near = {"expert outputs": 1e-4, "rows to experts": 0.1}.get(purpose, 0.0)
            assert ours[purpose].bytes == pytest.approx(each.bytes, rel=near, abs=0)
