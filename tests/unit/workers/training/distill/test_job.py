"""A whole job, as the command runs it, on a small random model."""

import json
from pathlib import Path
from typing import Any

import pytest
from harvested import Harvested

from outrider.cluster.cli.app import run
from outrider.workers.model.draft_head import DRAFT_HEAD_FILE, draft_head_ids
from outrider.workers.training.distill.cut_head import FULL
from outrider.workers.training.distill.job import PARTS
from outrider.workers.types.model.model_config import ModelConfig

SETTINGS = {
    "max_tokens": 40, "temperatures": [0, 1], "depth": 2, "batch_rows": 4, "window": 24, "dtype": "float32",
    "held_out": 0.3, "measured_prompts": 2, "expert_group_size": 2,
}  # fmt: skip


def distill(harvested: Harvested, folder: Path, *more: str) -> dict[str, Any]:
    """What the command says that it found."""
    lines = [json.dumps({"token_ids": prompt.token_ids, "kind": "text"}) for prompt in harvested.prompts]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    paths = ["--prompts", str(folder / "prompts.jsonl"), "--work", str(folder / "work"), "--out", str(folder / "out")]
    engine = ["--engine", "kv_cache_memory_bytes=16777216"]
    written = ["--json", str(folder / "found.json")]
    model = ["--model", str(harvested.checkpoint)]
    status = run(["--debug", "distill", *model, *paths, *settings, "--steps", "4", *more, *engine, *written])
    assert status == 0
    return dict(json.loads((folder / "found.json").read_text()))


@pytest.mark.full
def test_every_part_leaves_what_the_next_one_needs_and_says_what_it_found(harvested: Harvested, tmp_path: Path) -> None:
    found = distill(harvested, tmp_path)

    assert list(found) == list(PARTS)
    assert found["harvest"]["texts"] == 2 * len(harvested.prompts)
    assert [look["step"] for look in found["train"]["held_out"]] == [0, 4]
    assert found["export"]["changed"]
    assert found["export"]["others"]
    cases = {case["case"]: case for case in found["evaluate"]["cases"]}
    assert set(cases) == {"text, T=0", "text, T=0.8"}
    for case in cases.values():
        assert set(case["drafts"]) == set(case["speedup"]) == {"before", "after"}
        assert len(case["drafts"]["after"]["acceptance"]) == 2
    ids = draft_head_ids(tmp_path / "out", ModelConfig.load(tmp_path / "out"))
    sizes = found["head"]["sizes"]
    assert sizes[found["head"]["chosen"]]["tokens"] == (97 if ids is None else len(ids))
    assert (found["head"]["chosen"] == FULL) == (not (tmp_path / "out" / DRAFT_HEAD_FILE).exists())
    assert json.loads((tmp_path / "work" / "report.json").read_text()) == found


@pytest.mark.full
def test_a_part_alone_goes_on_from_what_is_there(harvested: Harvested, tmp_path: Path) -> None:
    distill(harvested, tmp_path, "--only", "harvest", "--only", "train")

    found = distill(harvested, tmp_path, "--only", "train", "--only", "export")

    assert found["train"]["note"] == "was there already"
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_dry_run_prints_every_part_for_8_and_16(
    harvested: Harvested, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = distill(harvested, tmp_path, "--dry-run", "--set", "batch_rows=16", "--zero-stage", "3")

    assert [each["world_size"] for each in found["footprints"]] == [8, 16]
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("weights of the module", "gradients", "optimizer states", "16 GPUs"))
