"""What `outrider distill` is told."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import random_config, write_checkpoint

from outrider.workers.config import resolve_model
from outrider.workers.training.distill.gang import Machines
from outrider.workers.training.distill.job import Job, dry_run, make_job
from outrider.workers.training.distill.run import Listener, run_job
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"zero_stage": 4}, "zero_stage must be one of 1, 2, 3, got 4"),
        ({"loss": "mse"}, "loss must be one of kl, tv, got 'mse'"),
        ({"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be an integer of at least 1, got 2.5"),
        ({"decay": 0.0}, "decay must be a number above 0 and at most 1"),
        ({"offload": "all"}, 'offload="all" moves parameters too, which needs zero_stage=3, got 2'),
        ({"learning_rate": -1.0}, "learning_rate must be a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate must be a number above 0, got 'fast'"),
    ],
)
def test_a_value_out_of_range_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TrainingSettings(**changes)


def test_settings_travel_as_they_are() -> None:
    settings = TrainingSettings(depth=3, zero_stage=3, offload="all", decay=0.7)

    assert TrainingSettings.from_json(settings.to_json()) == settings


def test_the_rate_warms_up_stays_and_falls_to_a_twentieth() -> None:
    settings = TrainingSettings(steps=1000, warm_up_steps=10, learning_rate=1.0)

    rates = [settings.learning_rate_at(step) for step in (0, 9, 300, 650, 1000)]

    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.525, 0.05])


def test_a_job_is_made_of_what_was_given(tmp_path: Path) -> None:
    given = {
        "model": "scout", "work": "w", "prompts": "p.txt", "out": "o", "only": ["train", "export"], "ranks": 8,
        "nodes": 2, "node_rank": 1, "master": "10.0.0.1:29500", "temperatures": [0, 0.6], "batch_rows": 32,
    }  # fmt: skip

    job = make_job(given, {"max_num_seqs": 4})

    assert job.training == TrainingSettings(model="scout", work="w", batch_rows=32)
    assert job.machines == Machines(ranks=8, count=2, number=1, master_address="10.0.0.1", master_port=29500)
    assert (job.parts, job.prompts, job.out) == (("train", "export"), Path("p.txt"), Path("o"))
    assert (job.temperatures, job.engine) == ((0.0, 0.6), {"max_num_seqs": 4})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"dept": 3}, "unknown setting dept: known are .*depth"),
        ({"only": ["harvest"]}, "prompts is needed"),
        ({"only": ["export"]}, "out is needed"),
        ({"only": ["learn"]}, "only must be of harvest, train, .*got learn"),
        ({"prompts": "p", "out": "o", "temperatures": [-1]}, "temperatures must be numbers of at least 0"),
        ({"only": ["train"], "nodes": 2}, "several nodes need --master HOST:PORT"),
        ({"only": ["train"], "nodes": 2, "node_rank": 2, "master": "a:1"}, "node_rank in 0..nodes-1"),
    ],
)
def test_a_job_that_cannot_be_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_job(given, {})


def test_all_parts_are_the_default() -> None:
    assert Job(training=TrainingSettings(), prompts=Path("p"), out=Path("o")).parts == (
        "harvest", "train", "export", "head", "evaluate",
    )  # fmt: skip


def test_a_model_that_several_modules_draft_for_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", random_config(3, num_nextn_predict_layers=2))
    given = {"model": str(tmp_path / "model"), "work": str(tmp_path / "work"), "only": ["train"]}

    with pytest.raises(OutriderError, match="model has 2 MTP modules, which draft in turn: distill trains"):
        run_job(make_job(given, {}), Listener())
    with pytest.raises(OutriderError, match="2 MTP modules"):
        dry_run({"model": given["model"]}, ModelConfig.load(tmp_path / "model"), [8])
    assert not (tmp_path / "work").exists()


def test_a_dry_run_checks_the_checkpoints_shapes_and_says_what_every_size_takes() -> None:
    scout = ModelConfig.load(resolve_model("scout"))

    found = dry_run({"model": "scout", "zero_stage": 3, "batch_rows": 16}, scout, [8, 16])

    assert "all in the checkpoint, in their shapes" in found["module"]
    assert [each["world_size"] for each in found["footprints"]] == [8, 16]
    assert (
        found["footprints"][0]["gpu"]["weights of the module"] > found["footprints"][1]["gpu"]["weights of the module"]
    )
