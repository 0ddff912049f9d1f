"""The settings of `outrider distill`: frozen, checked once, torch-free; sent to the training ranks as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from outrider.workers.types.settings import Setting, check_settings

LIVE_PARAMETERS = 1 << 30  # elements that ZeRO 3 may have gathered at once
ZERO_STAGES = (1, 2, 3)
OFFLOADS = ("none", "optimizer", "all")
TRAINED = ("all", "attention")
LOSS_NAMES = ("kl", "tv")
TRAINING_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How the MTP module is trained. A resumed run must have the same values of those that decide the result."""

    model: Annotated[str, Setting("Name of a bundled model (scout), or a checkpoint directory.")] = "scout"
    work: Annotated[str, Setting("Directory for harvest, checkpoints and report.")] = "distill"
    depth: Annotated[int, Setting("Draft depth to train for.", least=1)] = 4
    trained: Annotated[
        str, Setting("Parameters to train: all, or attention (with projections and norms).", choices=TRAINED)
    ] = "all"
    loss: Annotated[str, Setting("Loss: Kullback-Leibler divergence or total variation.", choices=LOSS_NAMES)] = "kl"
    decay: Annotated[float, Setting("Weight of a draft step, relative to the step before.", above=0, most=1)] = 0.8
    steps: Annotated[int, Setting("Number of updates.", least=1)] = 400
    batch_rows: Annotated[int, Setting("Windows in an update, over all ranks.", least=1)] = 16
    window: Annotated[int, Setting("Tokens of a window at which drafting starts.", least=8)] = 256
    learning_rate: Annotated[float, Setting("Learning rate.", above=0)] = 1e-3
    warm_up_steps: Annotated[int, Setting("Updates until the learning rate is reached.")] = 20
    dtype: Annotated[str, Setting("Data type of the training.", choices=TRAINING_DTYPES)] = "bfloat16"
    zero_stage: Annotated[int, Setting("DeepSpeed ZeRO stage.", choices=ZERO_STAGES)] = 2
    offload: Annotated[str, Setting("What is offloaded to the CPU.", choices=OFFLOADS)] = "none"
    accumulate: Annotated[int, Setting("Parts that the windows of an update are run in.", least=1)] = 1
    held_out: Annotated[float, Setting("Share of the prompts that is kept for evaluation.", above=0, most=1)] = 0.1
    seed: Annotated[int, Setting("Random seed.")] = 0
    save_every: Annotated[int, Setting("Updates between two checkpoints.", least=1)] = 100
    evaluate_every: Annotated[int, Setting("Updates between two evaluations.", least=1)] = 50
    expert_group_size: Annotated[int, Setting("Experts that ZeRO 3 gathers at once.", least=1)] = 16

    def __post_init__(self) -> None:
        check_settings(self)
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(f'offload="all" moves parameters too, which needs zero_stage=3, got {self.zero_stage}')

    def check_world(self, world_size: int) -> None:
        """ValueError unless a step's windows can be split evenly."""
        if self.batch_rows % (world_size * self.accumulate):
            raise ValueError(
                f"batch_rows must be a multiple of ranks x accumulate = {world_size} x {self.accumulate},"
                f" got {self.batch_rows}"
            )

    @property
    def harvest_folder(self) -> Path:
        return Path(self.work) / "harvest"

    @property
    def checkpoint_folder(self) -> Path:
        return Path(self.work) / "checkpoints"

    @property
    def trained_file(self) -> Path:
        """The trained tensors, once training has ended."""
        return Path(self.work) / "trained.safetensors"

    def learning_rate_at(self, step: int) -> float:
        """Warm-up, then constant to 30 %, then linear down to 5 %."""
        progress = step / self.steps
        decayed = 1 - 0.95 * max(0.0, (progress - 0.3) / 0.7)
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warm_up_steps)) * decayed

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrainingSettings":
        values: dict[str, Any] = json.loads(text)
        return cls(**values)
