"""What a round of an R1-like model does on a GPU, counted; and that a captured round does what a plain one does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu.pretend_cuda import Counts, pretending
from gpu.r1 import decoding, slice_of_r1, small_checkpoint

from outrider.workers.drafting.draft_model import Wanted
from outrider.workers.drafting.gpu_draft_model import GpuDraftModel
from outrider.workers.drafting.pairs import Pairs
from outrider.workers.model.gpu_stage import GpuModules, GpuStage
from outrider.workers.sampling.gpu_head import GpuHead
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.round import SequenceStart
from outrider.workers.types.sampling_params import SamplingParams

CUDA, BLOCKS = torch.device("cuda", 0), 600
Rank = tuple[Counts, GpuStage, GpuModules]


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rank]:
    checkpoint = small_checkpoint(tmp_path_factory.mktemp("small"))
    with pretending() as counts:
        yield counts, *slice_of_r1(checkpoint, CUDA, BLOCKS)


def _starts(count: int) -> SequenceStarts:
    starts = SequenceStarts((1,))
    params = SamplingParams(temperature=0.7, max_tokens=9, ignore_eos=True)
    starts.begin(
        SequenceStart(sequence_id=n, params=params, seed=n, output_index=0, prompt_tokens=4) for n in range(count)
    )
    return starts


def _round(rank: Rank, context: int) -> Counts:
    """One sequence with three drafts: through all layers, head and draws."""
    counts, stage, _ = rank
    counts.clear()
    hidden = stage.run(decoding(1, 4, context), None)
    inside = counts.taken()
    GpuHead(stage, _starts(1)).draw(hidden, np.arange(4), np.zeros(4, dtype=np.int64), np.arange(4) + 4)
    drawn = counts.taken()
    assert sum(inside.syncs.values()) == 0
    return Counts(
        inside.launches + drawn.launches, inside.kinds + drawn.kinds, drawn.syncs, inside.copies + drawn.copies
    )


def test_a_decoding_round_of_r1_on_eight_ranks(rank: Rank) -> None:
    counts = _round(rank, 100)

    assert counts.kinds.total() <= 850
    assert counts.syncs.total() == 1, "the host waits once, for the tokens"
    assert counts.copies.total() == 3, "the round's integers and the draws' to the device, the tokens back"
    assert "cumsum" not in counts.kinds, "which has no fixed order of sums on a GPU"


def test_a_rounds_launches_do_not_depend_on_context(rank: Rank) -> None:
    assert _round(rank, 100).kinds == _round(rank, 32_000).kinds


def test_a_prompts_chunk_past_16k_has_as_many_launches_a_row_as_one_before(rank: Rank) -> None:
    """Attention goes in pieces of rows, and never row by row."""
    counts, stage, _ = rank
    taken = []
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


def test_a_draft_more_is_at_most_20_launches_and_no_wait(rank: Rank) -> None:
    counts, _, module = rank
    model = GpuDraftModel(module, _starts(2))
    taken = []
    for depth in (1, 2, 5):
        counts.clear()
        drafts = model.draft(_pairs(2), Wanted(np.arange(2), np.array([depth, 1])))
        taken.append(counts.taken())
        assert [len(each) for each in drafts] == [depth, 1]

    launches = [each.kinds.total() for each in taken]
    assert launches[1] - launches[0] <= 20
    assert launches[2] - launches[1] <= 3 * 20
    assert [each.syncs.total() for each in taken] == [1, 1, 1]
    assert taken[1].copies == taken[2].copies


def test_a_round_as_a_graph_does_what_kernels_one_by_one_do(tmp_path: Path) -> None:
    """Filled up with rows that see and write nothing. Twins, unlike kernels, round a row by its company."""
    with pretending():
        stage, _ = slice_of_r1(small_checkpoint(tmp_path), CUDA, 40, layers=3)
        rounds = [decoding(1, 4, 0), decoding(3, 1, 4), decoding(1, 2, 700), decoding(2, 3, 5)]
        plain = [stage.run(rows, None).cpu() for rows in rounds]
        for layer in stage.cache.layers:
            layer.zero_()
        stage.use_graphs(capture=lambda run: run)
        captured = [stage.run(rows, None).cpu() for rows in rounds]

    for one, other in zip(plain, captured, strict=True):
        assert (one - other).float().abs().max() < 0.1 * one.float().std()
