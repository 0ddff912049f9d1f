from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware, find_gpu, known_gpus
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.search import DoesNotFitError, Objective, require_fit, search
from outrider.cluster.planning.split import Split, refusal, splits
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_shapes import Shapes

R1 = Shapes.of(load_shape("deepseek-r1"))
SCOUT = Shapes.of(load_shape("scout"))


def fleet(gpu: str, nodes: int = 1, gpus_per_node: int = 8) -> Hardware:
    return Hardware(gpu=find_gpu(gpu), nodes=nodes, gpus_per_node=gpus_per_node)


@pytest.mark.parametrize(
    ("gpu", "nodes", "fits"), [("h200", 1, True), ("h100", 2, True), ("h100", 1, False), ("h800", 1, False)]
)
def test_r1_fits_what_it_is_known_to_fit(gpu: str, nodes: int, fits: bool) -> None:
    ranking = search(R1, fleet(gpu, nodes), Workload(), Objective())

    assert bool(ranking.fitting) is fits


def test_a_refusal_says_where_and_how_many_bytes_are_missing() -> None:
    ranking = search(R1, fleet("h100"), Workload(), Objective())
    with pytest.raises(DoesNotFitError) as refused:
        require_fit(ranking, "deepseek-r1", fleet("h100"))

    assert ranking.nearest is not None
    stage, needed = ranking.nearest.tightest
    missing = needed - find_gpu("h100").memory_bytes
    assert f"{needed:,.0f} bytes on every GPU of stage {stage}" in str(refused.value)
    assert f"{missing:,.0f} bytes are missing" in str(refused.value)
    assert missing > 0


def test_memory_that_was_missing_is_enough_once_it_is_there() -> None:
    nearest = search(R1, fleet("h100"), Workload(), Objective()).nearest
    assert nearest is not None
    gpu = replace(nearest.fleet.gpu, memory_bytes=nearest.fleet.gpu.memory_bytes + round(nearest.bytes_missing) + 1)

    roomier = replace(nearest.fleet, gpu=gpu)

    assert search(R1, roomier, Workload(), Objective()).fitting
    less = replace(roomier, gpu=replace(gpu, memory_bytes=gpu.memory_bytes - 2_000_000))
    assert not search(R1, less, Workload(), Objective()).fitting


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(sorted(known_gpus())),
    st.integers(1, 4),
    st.sampled_from([1, 4, 8]),
    st.sampled_from(["latency", "throughput"]),
    st.integers(1, 300),
)
def test_what_is_ranked_fits_and_is_in_order(
    gpu: str, nodes: int, per_node: int, objective: str, concurrency: int
) -> None:
    where = fleet(gpu, nodes, per_node)
    ranking = search(R1, where, Workload(concurrency=concurrency), Objective(objective=objective))

    for one in ranking.fitting:
        assert refusal(R1.model, one.split) is None
        assert one.split.world_size <= where.size
        for memory in one.memories:
            assert memory.fixed + one.wanted_tokens * memory.cache_per_token <= where.gpu.memory_bytes
            assert memory.cache_tokens >= one.wanted_tokens
    keys = [one.token_s if objective == "latency" else -one.tokens_per_s_per_gpu for one in ranking.fitting]
    assert keys == pytest.approx(sorted(keys), rel=1e-6)


def test_throughput_fills_the_cache_and_latency_does_not() -> None:
    latency = search(R1, fleet("h200"), Workload(concurrency=1), Objective()).fitting[0]
    throughput = search(R1, fleet("h200"), Workload(concurrency=1), Objective(objective="throughput")).fitting[0]

    assert latency.workload.concurrency == 1
    assert throughput.workload.concurrency > 16
    assert throughput.tokens_per_s_per_gpu > latency.tokens_per_s_per_gpu
    assert throughput.tokens_per_s_per_user < latency.tokens_per_s_per_user


def test_no_user_is_slower_than_asked_for() -> None:
    goal = Objective(objective="throughput", tokens_per_s_per_user=60)

    ranking = search(R1, fleet("h200"), Workload(), goal)

    assert ranking.fitting
    assert all(one.tokens_per_s_per_user >= 60 for one in ranking.fitting)


def test_speed_that_no_plan_has_is_said_so() -> None:
    ranking = search(R1, fleet("h200"), Workload(), Objective(objective="throughput", tokens_per_s_per_user=1e6))

    with pytest.raises(DoesNotFitError, match="no plan reaches the minimum tokens/s per user"):
        require_fit(ranking, "deepseek-r1", fleet("h200"))


def test_only_plans_with_the_sizes_that_were_fixed_are_shown() -> None:
    ranking = search(R1, fleet("h200", 2), Workload(), Objective(sizes={"pipeline": 2}))

    assert {one.split.pipeline for one in ranking.fitting} == {2}


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"tensor": 3, "pipeline": 1, "expert": 1, "data": 1}, "tensor_parallel_size=3"),
        ({"tensor": 16, "pipeline": 1, "expert": 1, "data": 1}, "needs 16 GPUs"),
        ({"tensor": 3}, "tensor_parallel_size=3"),
        ({"tensor": 16}, "needs 16 GPUs"),
        ({"pipeline": 7}, "no split with these sizes .* power of two"),
    ],
)
def test_sizes_that_cannot_be_are_an_error_that_names_them(sizes: dict[str, int], named: str) -> None:
    ranking = search(R1, fleet("h200"), Workload(), Objective(sizes=sizes))

    with pytest.raises(OutriderError, match=named):
        require_fit(ranking, "deepseek-r1", fleet("h200"))


def test_the_stages_of_a_plan_are_as_even_as_layers_allow_with_drafts_counted() -> None:
    candidate = Candidate(R1, Split(pipeline=4, tensor=4), Workload(draft_steps=8), fleet("h200", 2), Efficiency())
    stages = [sum(parts.values()) for parts in candidate.decode_parts]
    layer = max(time.total for time in candidate.layer_times(candidate.rows))

    sizes = [end - first for first, end in candidate.layer_splits]
    assert sizes[0] < min(sizes[1:3])
    assert max(stages) - min(stages) <= 2 * layer


def test_every_rank_is_where_the_mesh_says_and_every_expert_is_somewhere() -> None:
    candidate = Candidate(R1, Split(pipeline=2, data=2, tensor=4, expert=8), Workload(), fleet("h200", 2), Efficiency())
    ranks = list(candidate.ranks())

    assert [rank.rank for rank in ranks] == list(range(16))
    assert [(rank.stage, rank.data, rank.tensor) for rank in ranks[:9:4]] == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
    for stage in (0, 1):
        held = [expert for rank in ranks if rank.stage == stage for expert in range(*rank.experts)]
        assert held == list(range(256))
    assert {rank.node for rank in ranks if rank.stage == 0} == {0}


def test_scout_fits_one_small_gpu() -> None:
    assert search(SCOUT, fleet("l40s", 1, 1), Workload(), Objective()).fitting[0].split == Split()


@given(st.sampled_from(list(splits(R1.model, 16))))
def test_the_ranks_of_a_replica_hold_the_model_once_for_each_data_group_and_experts_by_their_spread(
    split: Split,
) -> None:
    candidate = Candidate(R1, split, Workload(draft_steps=0), fleet("h200", 2), Efficiency())

    def held(part: str) -> float:
        return sum(memory.weights.get(part, 0.0) for memory in candidate.memories) * split.stage_size

    experts = 58 * 256 * R1.expert * R1.weight_bytes
    assert held("experts") == pytest.approx(experts * (1 if split.spread else split.data))
    for part, whole in (("attention", 61 * R1.attention_bytes), ("dense", 3 * R1.dense * R1.weight_bytes)):
        assert held(part) == pytest.approx(whole * split.data)
    assert held("embedding") == held("head") == pytest.approx(R1.vocabulary * 2 * split.data)
