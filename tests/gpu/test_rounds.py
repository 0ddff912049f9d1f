"""Launches, syncs and copies of a round of an R1-like model on a GPU; and graph rounds against eager ones."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu.pretend_cuda import Counts, pretending
from gpu.r1 import decoding, run_round, sequence_starts, slice_of_r1, small_checkpoint

from outrider.cluster.planning.efficiency import Efficiency
from outrider.workers.drafting.draft_model import DraftRequest
from outrider.workers.drafting.gpu_draft_model import GpuDraftModel
from outrider.workers.drafting.pairs import Pairs
from outrider.workers.model.gpu.stage import GpuModules, GpuStage
from outrider.workers.model.gpu.weights import GpuMoe

CUDA, BLOCKS = torch.device("cuda", 0), 600
Rank = tuple[Counts, GpuStage, GpuModules]


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rank]:
    checkpoint = small_checkpoint(tmp_path_factory.mktemp("small"))
    with pretending() as counts:
        yield counts, *slice_of_r1(checkpoint, CUDA, BLOCKS)


def _round(rank: Rank, context: int) -> Counts:
    """A round of one sequence with three drafts."""
    counts, stage, _ = rank
    counts.clear()
    run_round(stage, 1, 4, context)
    return counts.taken()


def test_a_decoding_round_of_r1_on_eight_ranks(rank: Rank) -> None:
    counts = _round(rank, 100)

    assert counts.kinds.total() <= 850
    assert counts.syncs.total() == 1, "the host waits once, for the tokens"
    assert counts.copies_inside == []
    assert [what.split()[1] for what in counts.copies.elements()] == ["device", "host"], "its integers, its tokens"
    assert "cumsum" not in counts.kinds, "its order of sums is not deterministic on a GPU"


def test_a_round_has_the_launches_that_the_planner_counts(rank: Rank) -> None:
    dense = len([layer for layer in rank[1].layers if not isinstance(layer.mlp, GpuMoe)])
    efficiency, moe = Efficiency(), len(rank[1].layers) - dense
    of_layers = dense * efficiency.layer_launches(moe=False) + moe * efficiency.layer_launches(moe=True)

    assert (dense, moe) == (3, 58)
    assert _round(rank, 100).kinds.total() == of_layers + 5, "embedding, first norm, head, and two for the draws"


def test_a_rounds_launches_do_not_depend_on_context(rank: Rank) -> None:
    short, long = _round(rank, 100), _round(rank, 32_000)

    assert short.kinds == long.kinds
    assert short.order == long.order, "launches and copies, one after another"
    assert short.syncs == long.syncs


def test_a_prefill_chunk_past_16k_has_as_many_launches_as_the_first(tmp_path: Path) -> None:
    """Attention is split into pieces of many rows, never into single rows. Three dense layers, two MoE layers."""
    taken = []
    with pretending() as counts:
        stage, _ = slice_of_r1(small_checkpoint(tmp_path), CUDA, BLOCKS, layers=5)
        for context in (0, 17_000):
            counts.clear()
            stage.run(decoding(1, 24, context), None)
            taken.append(counts.taken().kinds)

    assert taken[0] == taken[1]


def _pairs(sequences: int) -> Pairs:
    ids = np.arange(sequences)
    return Pairs(
        sequence_ids=ids, lengths=np.ones_like(ids), token_ids=ids + 7, positions=ids * 0 + 20,
        hidden=torch.randn(sequences, 256).bfloat16().to(CUDA), write_from=ids * 0, first_slots=ids * 0 + 1,
        tables=tuple(np.array([n]) for n in ids),
    )  # fmt: skip


def test_one_more_draft_is_at_most_20_launches_and_no_host_sync(rank: Rank) -> None:
    counts, _, module = rank
    model = GpuDraftModel(module, sequence_starts(2))
    pairs, taken = _pairs(2), []
    for depth in (1, 2, 5):
        counts.clear()
        drafts = model.draft(pairs, DraftRequest(np.arange(2), np.array([depth, 1])))
        taken.append(counts.taken())
        assert [len(each) for each in drafts] == [depth, 1]

    launches = [each.kinds.total() for each in taken]
    assert launches[1] - launches[0] <= 20
    assert launches[2] - launches[1] <= 3 * 20
    assert [each.syncs.total() for each in taken] == [1, 1, 1]
    assert taken[1].copies == taken[2].copies
    assert all([what.split()[1] for what in each.copies.elements()] == ["device", "host"] for each in taken)


def test_a_call_of_the_drafter_in_graphs_launches_as_often_whatever_its_depth(rank: Rank) -> None:
    counts, _, module = rank
    eager, model = GpuDraftModel(module, sequence_starts(2)), GpuDraftModel(module, sequence_starts(2))
    model.use_graphs()
    launches = []
    for depth in (2, 3, 5):
        pairs, wanted = _pairs(2), DraftRequest(np.arange(2), np.array([depth, 1]))
        captured = model.draft(pairs, wanted)
        counts.clear()
        replayed = model.draft(pairs, wanted)
        taken = counts.taken()
        launches.append(taken.kinds.total())
        assert taken.kinds["graph"] == 2
        assert taken.syncs.total() == 1
        assert taken.copies_inside == []
        assert [what.split()[1] for what in taken.copies.elements()] == ["device", "host"]
        assert [each.token_ids for each in replayed] == [each.token_ids for each in captured]
        assert [each.token_ids for each in replayed] == [each.token_ids for each in eager.draft(pairs, wanted)]

    assert len(set(launches)) == 1
    assert launches[0] <= 20


def test_a_graph_round_gives_the_eager_result(tmp_path: Path) -> None:
    """Padding rows change nothing. Twins are not batch-invariant, so results agree within rounding only."""
    with pretending() as counts:
        stage, _ = slice_of_r1(small_checkpoint(tmp_path), CUDA, 40, layers=3)
        rounds = [decoding(1, 4, 0), decoding(3, 1, 4), decoding(1, 2, 700), decoding(2, 3, 5)]
        plain = [stage.run(rows, None).cpu() for rows in rounds]
        for layer in stage.cache.layers:
            layer.zero_()
        stage.use_graphs()
        captured = [stage.run(rows, None).cpu() for rows in rounds]
        counts.clear()
        run_round(stage, 1, 4, 100)

    for one, other in zip(plain, captured, strict=True):
        assert (one - other).float().abs().max() < 0.1 * one.float().std()
    assert counts.copies_inside == []
    assert [what.split()[1] for what in counts.copies.elements()] == ["device", "host"]
