"""What `outrider distill` is told: frozen, checked once, torch-free; travels to the training ranks as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIVE_PARAMETERS = 1 << 30  # elements that ZeRO 3 may have gathered at once
ZERO_STAGES = (1, 2, 3)
OFFLOADS = ("none", "optimizer", "all")
TRAINED = ("all", "attention")
LOSS_NAMES = ("kl", "tv")
TRAINING_DTYPES = ("float32", "bfloat16")
_CHOICES: dict[str, tuple[object, ...]] = {
    "zero_stage": ZERO_STAGES,
    "offload": OFFLOADS,
    "trained": TRAINED,
    "loss": LOSS_NAMES,
    "dtype": TRAINING_DTYPES,
}
_LEAST = {
    "depth": 1,
    "steps": 1,
    "batch_rows": 1,
    "window": 8,
    "accumulate": 1,
    "save_every": 1,
    "evaluate_every": 1,
    "expert_group_size": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How the MTP module is trained. What of it decides the result is also what a resumed run must agree with."""

    model: str = "scout"
    work: str = "distill"  # the folder of harvest, checkpoints and metrics
    depth: int = 4  # steps of the recursion
    trained: str = "all"  # or "attention": attention, projections and norms
    loss: str = "kl"
    decay: float = 0.8  # the weight of a step, of the one before
    steps: int = 400
    batch_rows: int = 16  # windows in a step, over all ranks
    window: int = 256  # starts in a window
    learning_rate: float = 1e-3
    warm_up_steps: int = 20
    dtype: str = "bfloat16"
    zero_stage: int = 2
    offload: str = "none"
    accumulate: int = 1  # a step's windows are run in so many parts
    held_out: float = 0.1  # share of the prompts
    seed: int = 0
    save_every: int = 100
    evaluate_every: int = 50
    expert_group_size: int = 16  # experts that ZeRO 3 gathers at once

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}")
        for name, least in _LEAST.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {getattr(self, name)!r}")
        self._check_numbers()
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(f'offload="all" moves parameters too, which needs zero_stage=3, got {self.zero_stage}')

    def _check_numbers(self) -> None:
        for name in ("decay", "held_out", "learning_rate"):
            if type(getattr(self, name)) not in (int, float):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name in ("decay", "held_out"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")

    def check_world(self, world_size: int) -> None:
        """ValueError unless a step's windows can be dealt out evenly."""
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
