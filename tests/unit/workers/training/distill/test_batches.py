"""Windows of harvested text."""

from pathlib import Path

import numpy as np
import pytest
import torch

from outrider.workers.serving.harvest_shards import Harvest, Sample, write_shard
from outrider.workers.training.distill.batches import Batches
from outrider.workers.training.distill.prompts import is_held_out
from outrider.workers.types.errors import OutriderError

WINDOW, DEPTH = 8, 3


def sample(seed: int, prompt: int, length: int) -> Sample:
    """Tokens that count up from 100 x seed; the state of each is the token itself."""
    tokens = np.arange(length, dtype=np.int64) + 100 * seed
    hidden = torch.from_numpy(tokens[:-1]).float()[:, None].repeat(1, 2)
    return Sample(token_ids=tokens, hidden=hidden, prompt_tokens=prompt, temperature=1.0, seed=seed)


def batches(folder: Path, samples: list[Sample], held_out: bool = False, share: float = 0.0) -> Batches:
    write_shard(folder, samples)
    return Batches(Harvest(folder), window=WINDOW, depth=DEPTH, held_out=held_out, share=share, seed=0)


@pytest.mark.parametrize(("prompt", "length"), [(3, 12), (5, 40), (12, 30), (1, 9), (6, 10)])
def test_every_start_whose_drafts_can_be_judged_counts_once(tmp_path: Path, prompt: int, length: int) -> None:
    found = batches(tmp_path, [sample(1, prompt, length)])

    counted: list[int] = []
    for number in range(len(found)):
        batch = found.windows([number])
        counted += batch.token_ids[:, :WINDOW][batch.counted].tolist()
        known = batch.token_ids != 0
        assert torch.equal(batch.hidden[known][:, 0].long(), batch.token_ids[known])

    # the pair of the prompt's last token makes the first draft; the last one needs a state DEPTH tokens on
    assert sorted(counted) == list(range(100 + prompt - 1, 100 + length - 1 - DEPTH))


def test_a_start_that_counts_has_half_a_window_before_it_where_there_is(tmp_path: Path) -> None:
    found = batches(tmp_path, [sample(1, 4, 60)])

    for number in range(len(found)):
        batch = found.windows([number])
        first, place = int(batch.token_ids[0, 0]) - 100, int(batch.counted[0].nonzero()[0])
        assert first == 0 or place >= WINDOW // 2


def test_ranks_share_a_batch_and_every_window_comes_once_before_one_comes_again(tmp_path: Path) -> None:
    found = batches(tmp_path, [sample(n, 3, 12) for n in range(1, 7)])

    whole = [found.batch(step, 2).token_ids[:, 0].tolist() for step in range(3)]
    shares = [[int(found.batch(step, 2, rank, 2).token_ids[0, 0]) for rank in range(2)] for step in range(3)]

    assert shares == whole
    assert len({first for row in whole for first in row}) == 6
    assert [found.batch(step, 2).token_ids[:, 0].tolist() for step in range(3)] == whole


def test_held_out_prompts_are_never_trained_on_at_any_temperature(tmp_path: Path) -> None:
    samples = [sample(n, 3, 12) for n in range(1, 40)]
    halves = [batches(tmp_path, samples, held_out, 0.4) for held_out in (False, True)]

    firsts = [{int(half.windows([n]).token_ids[0, 0]) for n in range(len(half))} for half in halves]

    assert not firsts[0] & firsts[1]
    assert len(firsts[0] | firsts[1]) == 39
    assert all(is_held_out([first, first + 1, first + 2], 0.4) for first in firsts[1])


def test_text_that_is_too_short_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutriderError, match="no training text: harvest more prompts, or longer continuations"):
        batches(tmp_path, [sample(1, 3, 6)])
