from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware, find_gpu
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.split import Split, splits
from outrider.cluster.planning.timing import PEER_ROWS
from outrider.workers.types.model.model_shapes import Shapes

R1 = Shapes.of(load_shape("deepseek-r1"))
SPLITS = list(splits(R1.model, 16))
FLEET = Hardware(gpu=find_gpu("h200"), nodes=2, gpus_per_node=8)


def plan(split: Split, fleet: Hardware = FLEET, efficiency: Efficiency | None = None, **workload: object) -> Candidate:
    return Candidate(R1, split, Workload(**workload), fleet, efficiency or Efficiency())  # type: ignore[arg-type]


@given(
    st.sampled_from(SPLITS),
    st.sampled_from(["memory", "flops", "link", "network"]),
    st.integers(1, 512),
    st.sampled_from(["exact", "fast"]),
)
def test_better_hardware_is_never_slower(split: Split, what: str, concurrency: int, numerics: str) -> None:
    gpu = FLEET.gpu
    better = {
        "memory": replace(gpu, bandwidth=2 * gpu.bandwidth),
        "flops": replace(gpu, bf16_flops=2 * gpu.bf16_flops, fp8_flops=2 * (gpu.fp8_flops or 0)),
        "link": replace(gpu, link=2 * gpu.link),
        "network": replace(gpu, network=2 * gpu.network),
    }[what]

    before = plan(split, concurrency=concurrency, numerics=numerics)
    after = plan(split, replace(FLEET, gpu=better), concurrency=concurrency, numerics=numerics)

    assert after.round_s <= before.round_s * (1 + 1e-9)


@given(st.sampled_from(SPLITS), st.integers(1, 256), st.integers(1, 20_000))
def test_more_sequences_and_longer_ones_never_take_less_time(split: Split, concurrency: int, context: int) -> None:
    one = plan(split, concurrency=concurrency, context=context)

    assert plan(split, concurrency=2 * concurrency, context=context).round_s >= one.round_s * (1 - 1e-9)
    assert plan(split, concurrency=concurrency, context=2 * context).round_s >= one.round_s * (1 - 1e-9)


@given(st.sampled_from([split for split in SPLITS if split.spread and split.data > 1]), st.integers(2, 4096))
def test_overlapping_halves_is_only_done_where_it_is_faster(split: Split, concurrency: int) -> None:
    overlapped = plan(split, concurrency=concurrency)
    plain = plan(split, efficiency=Efficiency(overlap=False), concurrency=concurrency)

    assert overlapped.round_s <= plain.round_s * (1 + 1e-9)


@given(st.sampled_from(SPLITS), st.integers(1, 64))
def test_a_rounds_parts_add_up_to_its_stages(split: Split, concurrency: int) -> None:
    one = plan(split, concurrency=concurrency)
    stages = [sum(parts.values()) for parts in one.decode_parts]

    assert all(value >= -1e-12 for parts in one.decode_parts for value in parts.values())
    assert one.round_s >= sum(stages)
    assert one.round_s >= one.lanes * max(stages)


def test_a_draft_costs_less_than_the_token_it_saves_at_small_batches() -> None:
    split = Split(tensor=8)

    assert plan(split, concurrency=1, draft_steps=2).token_s < plan(split, concurrency=1, draft_steps=0).token_s


def test_drafts_that_are_never_accepted_only_cost() -> None:
    split = Split(tensor=8)

    assert plan(split, draft_steps=2, acceptance=0.0).token_s > plan(split, draft_steps=0).token_s


def test_tokens_a_round_are_the_accepted_drafts_and_one_more() -> None:
    assert Workload(draft_steps=2, acceptance=0.5).tokens_per_round == 1.75
    assert Workload(draft_steps=0).tokens_per_round == 1
    assert Workload(draft_steps=3, acceptance=1.0).tokens_per_round == 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("concurrency", 0),
        ("context", 0),
        ("acceptance", 1.5),
        ("draft_steps", 17),
        ("numerics", "loose"),
        ("redundant_experts", -1),
    ],
)
def test_a_workload_that_cannot_be_is_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        Workload(**{setting: value})  # type: ignore[arg-type]


def test_one_sampler_for_many_data_groups_costs_what_their_logits_are() -> None:
    split = Split(data=16, expert=16)
    together, apart = (plan(split, concurrency=512, one_sampler=one) for one in (True, False))

    logits = 15 * together.rows.rows * R1.model.vocab_size * 4  # of the other groups
    assert together.round_s - apart.round_s >= logits / FLEET.gpu.link / 2


def with_modules(count: int, steps: int) -> Candidate:
    one = plan(Split(tensor=8, pipeline=2), concurrency=8, draft_steps=steps)
    return replace(one, shapes=Shapes(replace(R1.model, num_nextn_predict_layers=count), R1.weight_bytes))


def test_modules_take_memory_each_and_time_where_no_draft_is_theirs() -> None:
    one, three = with_modules(1, 2), with_modules(3, 2)

    assert three.memories[0].weights["drafter"] == pytest.approx(3 * one.memories[0].weights["drafter"])
    own = three.memories[0].cache_per_token - one.memories[0].cache_per_token
    layers = [candidate.layer_splits[0][1] for candidate in (one, three)]
    assert own == (2 + layers[1] - layers[0]) * R1.cache_bytes(ranks=8)
    assert three.draft_s > one.draft_s
    assert with_modules(3, 4).draft_s < 1.5 * with_modules(1, 4).draft_s  # as many passes, of more rows
    assert with_modules(3, 0).draft_s == 0


def test_sums_over_ranks_take_fewer_collectives_and_have_every_rank_make_all_latents() -> None:
    exact, fast = (plan(Split(tensor=8), numerics=numerics) for numerics in ("exact", "fast"))
    latents = 7168 * (1536 + 576) * R1.weight_bytes

    more = fast.memories[0].weights["attention"] - exact.memories[0].weights["attention"]
    assert more == pytest.approx(61 * latents * 7 / 8)
    one, other = (each.clock.layer(each.rows, moe=False) for each in (exact, fast))
    assert other.attention > one.attention
    assert other.exchange < one.exchange


@pytest.mark.parametrize(("nodes", "concurrency", "peers"), [(1, 16, True), (2, 16, False), (1, 8 * 65, False)])
def test_only_small_rounds_within_a_node_write_rows_to_each_others_memory(
    nodes: int, concurrency: int, peers: bool
) -> None:
    split = next(each for each in splits(R1.model, 8 * nodes) if each.spread and each.data == 8 * nodes)
    fleet, none = replace(FLEET, nodes=nodes), Efficiency(peer_dispatch_launches=0)

    default, fewer = (plan(split, fleet, given, concurrency=concurrency) for given in (Efficiency(), none))

    assert (fewer.layer_launches < default.layer_launches) is peers
    assert (fewer.round_s < default.round_s) is peers


def test_the_planner_knows_the_size_of_small_rounds() -> None:
    pytest.importorskip("triton")
    from outrider.kernels.gpu.dispatch import MOST_ROWS

    assert PEER_ROWS == MOST_ROWS
