"""Sizes of the drafting head from harvested text, and the one that pays."""

from pathlib import Path

import numpy as np
from harvested import Harvested
from safetensors.numpy import load_file

from outrider.workers.serving.harvest_shards import Harvest
from outrider.workers.training.distill.cut_head import FULL, HeadFigures, best, make_variants, own_frequencies
from outrider.workers.training.distill.prompts import is_held_out


def test_only_what_the_model_said_itself_in_training_counts(harvested: Harvested) -> None:
    harvest = Harvest(harvested.work / "harvest")
    said = [
        token
        for sample in harvest.outlines
        if not is_held_out(sample.token_ids[: sample.prompt_tokens].tolist(), 0.3)
        for token in sample.token_ids[sample.prompt_tokens :].tolist()
    ]

    frequencies = own_frequencies(harvest, 97, 0.3)

    assert np.allclose(frequencies, np.bincount(said, minlength=97) / len(said))


def test_variants_are_the_checkpoint_with_another_head(harvested: Harvested, tmp_path: Path) -> None:
    frequencies = np.array([0.0, 0.0, 0.6, 0.3, 0.1, *[0.0] * 92])

    variants = make_variants(harvested.checkpoint, frequencies, (0.5, 0.95), tmp_path)

    heads = {
        name: load_file(path / "draft_head.safetensors")["token_ids"].tolist()
        for name, path in variants.items()
        if name != FULL
    }
    assert heads == {"0.5": [1, 2], "0.95": [1, 2, 3, 4]}  # end-of-sequence is always there
    assert not (variants[FULL] / "draft_head.safetensors").exists()
    for path in variants.values():
        assert (path / "model.safetensors").samefile(harvested.checkpoint / "model.safetensors")


def figures(gain: float) -> HeadFigures:
    return HeadFigures(tokens=1, coverage=1.0, draft_time_saved=0.0, tokens_per_round=1.0, gain=gain)


def test_the_fastest_head_is_chosen_and_the_full_one_among_equals() -> None:
    assert best({FULL: figures(1.0), "0.9": figures(1.04), "0.99": figures(1.02)}) == "0.9"
    assert best({FULL: figures(1.0), "0.9": figures(1.0)}) == FULL
