"""Training by DeepSpeed: what ZeRO's stages have in common, and that a killed run goes on as if it had not been."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harvested import Harvested
from safetensors.torch import load_file
from torch import Tensor

from outrider.workers.training.distill.footprint import footprint
from outrider.workers.training.distill.gang import Machines, run_training
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

RANKS = 2
STAGES = [
    pytest.param({"zero_stage": 1}, id="zero 1", marks=pytest.mark.full),
    pytest.param({"zero_stage": 3}, id="zero 3", marks=pytest.mark.full),
    pytest.param({"zero_stage": 2, "offload": "optimizer"}, id="zero 2, optimizer on the CPU", marks=pytest.mark.full),
    pytest.param({"zero_stage": 3, "offload": "all"}, id="zero 3, all on the CPU", marks=pytest.mark.full),
    pytest.param({"zero_stage": 2, "accumulate": 2}, id="zero 2 in two parts", marks=pytest.mark.full),
]


def train(settings: TrainingSettings, ranks: int = RANKS) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = []
    run_training(settings, Machines(ranks=ranks), reports.append)
    return reports


def losses(reports: list[dict[str, Any]]) -> Tensor:
    """[steps, depth]"""
    return torch.tensor([report["train"]["loss"] for report in reports if "train" in report])


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    settings: TrainingSettings
    losses: Tensor  # [steps, depth]
    tensors: dict[str, Tensor]


@pytest.fixture(scope="module")
def reference(harvested: Harvested, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """ZeRO 2 on one rank."""
    settings = harvested.settings(tmp_path_factory.mktemp("reference"), zero_stage=2)
    return Trained(settings, losses(train(settings, ranks=1)), load_file(settings.trained_file))


def test_training_lowers_the_loss_at_every_step_of_the_recursion(reference: Trained) -> None:
    assert (reference.losses[-2:].mean(0) < reference.losses[:2].mean(0)).all(), reference.losses


@pytest.mark.parametrize("changes", STAGES)
def test_every_stage_of_zero_has_the_same_losses_and_exports_the_same_tensors(
    harvested: Harvested, tmp_path: Path, reference: Trained, changes: dict[str, Any]
) -> None:
    settings = harvested.settings(tmp_path, **changes)

    found = losses(train(settings))

    assert torch.allclose(found, reference.losses, rtol=2e-3), (found, reference.losses)
    tensors = load_file(settings.trained_file)
    assert tensors.keys() == reference.tensors.keys()
    for name, tensor in tensors.items():
        assert torch.allclose(tensor, reference.tensors[name], atol=3e-3), name


def test_a_killed_run_goes_on_as_if_it_had_not_been(harvested: Harvested, tmp_path: Path, reference: Trained) -> None:
    settings, reports = harvested.settings(tmp_path, zero_stage=3), []

    def kill_after_the_fifth(report: dict[str, Any]) -> None:
        reports.append(report)
        if report["step"] == 5 and "train" in report:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(settings, Machines(ranks=1), kill_after_the_fifth)
    assert not settings.trained_file.exists()
    resumed = train(settings, ranks=1)

    assert resumed[0] == {"step": 4, "steps": 10, "resumed": True}
    assert torch.allclose(losses(resumed), reference.losses[4:], rtol=2e-3)
    tensors = load_file(settings.trained_file)
    assert all(torch.allclose(tensor, reference.tensors[name], atol=3e-3) for name, tensor in tensors.items())


@pytest.mark.full
def test_a_checkpoint_of_other_settings_is_refused_by_name(harvested: Harvested, tmp_path: Path) -> None:
    def stop(report: dict[str, Any]) -> None:
        if report["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(harvested.settings(tmp_path), Machines(), stop)

    with pytest.raises(OutriderError, match=r"made with other settings or ranks \(decay=0\.8\)"):
        run_training(harvested.settings(tmp_path, decay=0.5), Machines(), stop)


@pytest.mark.full
def test_a_rank_that_is_killed_ends_the_others_and_is_named(harvested: Harvested, tmp_path: Path) -> None:
    settings = harvested.settings(tmp_path, steps=500)
    killed: list[int] = []

    def kill_one(report: dict[str, Any]) -> None:
        if not killed and report["step"] >= 2:
            killed.append(_child_of_rank(1))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(OutriderError, match=r"training rank \d ended with exit status"):
        run_training(settings, Machines(ranks=RANKS), kill_one)


def _child_of_rank(rank: int) -> int:
    """The pid of our training process of that rank, by the order in which they were started."""
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    ours = [pid for pid in own if b"distill.rank" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(sorted(ours, key=int)[rank])


@pytest.mark.full
def test_only_what_was_asked_for_is_trained(harvested: Harvested, tmp_path: Path) -> None:
    settings = harvested.settings(tmp_path, trained="attention", zero_stage=3, steps=2)

    train(settings, ranks=1)

    names = set(load_file(settings.trained_file))
    assert not [name for name in names if ".mlp." in name]
    layer = f"model.layers.{harvested.config['num_hidden_layers']}."
    assert {f"{layer}eh_proj.weight", f"{layer}self_attn.o_proj.weight", f"{layer}shared_head.norm.weight"} <= names


def test_metrics_are_kept_beside_the_checkpoints(reference: Trained) -> None:
    rows = [json.loads(line) for line in (Path(reference.settings.work) / "metrics.jsonl").read_text().splitlines()]

    assert [row["step"] for row in rows if "train" in row] == list(range(1, 11))
    assert [row["step"] for row in rows if "held_out" in row] == [0, 10]


def test_as_much_is_trained_as_the_dry_run_says(harvested: Harvested, reference: Trained) -> None:
    said = footprint(ModelConfig.load(harvested.checkpoint), reference.settings, 1)

    assert said.trained_elements == sum(tensor.numel() for tensor in reference.tensors.values())
