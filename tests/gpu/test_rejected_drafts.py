"""What a round with rejected drafts copies to a GPU: which rows were accepted is known on the host, after the round."""

from collections.abc import Iterator

import pytest
import torch
from gpu.pretend_cuda import Counts, pretending
from gpu.r1 import BLOCK_SIZE, decoding_round, run_round, sequence_starts, slice_of_r1, small_checkpoint

from outrider.workers.drafting.gpu_draft_model import GpuDraftModel
from outrider.workers.drafting.mtp_drafter import MtpDrafter
from outrider.workers.model.gpu.stage import GpuModules, GpuStage

CUDA, BLOCKS = torch.device("cuda", 0), 40
Rank = tuple[Counts, GpuStage, GpuModules]


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rank]:
    """With few layers: what is copied does not depend on their number."""
    checkpoint = small_checkpoint(tmp_path_factory.mktemp("small"))
    with pretending() as counts:
        yield counts, *slice_of_r1(checkpoint, CUDA, BLOCKS, layers=2)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("sequences", [1, 4, 16])
def test_rejected_drafts_cost_no_copy_of_their_own(rank: Rank, sequences: int, graphs: bool) -> None:
    """Which rows were accepted reaches the device with the drafter's inputs."""
    counts, stage, module = rank
    counts.clear()
    result = run_round(stage, sequences, 4, 100)
    taken = counts.taken()
    round, rejected = decoding_round(sequences, 4, 100, draft_steps=2), 4 - result.verdict.accepted_rows
    chosen = [4 * s + row for s, accepted in enumerate(result.verdict.accepted_rows) for row in range(accepted)]
    model = GpuDraftModel(module, starts := sequence_starts(sequences))
    if graphs:
        model.use_graphs()
    drafter = MtpDrafter(model, starts, BLOCK_SIZE)
    first = drafter.draft(round, result.verdict, result.hidden)
    counts.clear()
    again = drafter.draft(round, result.verdict, result.hidden)
    drafting = counts.taken()
    accepted = result.hidden if sequences == 1 else result.hidden.index_select(0, torch.tensor(chosen, device=CUDA))

    assert rejected.sum() > 0
    for each in (taken, drafting):
        assert each.copies_inside == []
        assert [what.split()[1] for what in each.copies.elements()] == ["device", "host"]
        assert each.syncs.total() == 1
    assert [len(own) for own in first.values()] == [2] * sequences
    assert again == first == drafter.draft(round, result.verdict, accepted)
