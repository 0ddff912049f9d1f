"""The job of `outrider distill`: combines and checks its settings; `dry_run` computes the memory it would need."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outrider.workers.config import BUNDLED_MODELS, resolve_model
from outrider.workers.model.weights import has_weights
from outrider.workers.training.distill.footprint import check_checkpoint, footprint, module_shape, tensor_shapes
from outrider.workers.training.distill.gang import Machines
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

PARTS = ("harvest", "train", "export", "head", "evaluate")
_TRAINING_SETTINGS = [field.name for field in dataclasses.fields(TrainingSettings)]
_JOB_SETTINGS = ["prompts", "out", "temperatures", "max_tokens", "max_prompt_tokens", "measured_prompts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All settings of `outrider distill`."""

    training: TrainingSettings
    machines: Machines = field(default_factory=Machines)
    parts: tuple[str, ...] = PARTS
    prompts: Path | None = None
    out: Path | None = None
    temperatures: tuple[float, ...] = (0.0, 0.8, 1.0)
    max_tokens: int = 256
    max_prompt_tokens: int = 256
    measured_prompts: int = 8  # per kind
    engine: dict[str, Any] = field(default_factory=dict)  # further settings of the engine that harvests and measures

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) < 0:
            raise ValueError(f"temperatures must be numbers of at least 0, got {list(self.temperatures)}")
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"only must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
        if self.prompts is None and set(self.parts) & {"harvest", "head", "evaluate"}:
            raise ValueError("prompts is needed: a file of prompts to continue")
        if self.out is None and set(self.parts) & {"export", "head", "evaluate"}:
            raise ValueError("out is needed: the folder that the distilled checkpoint is written to")

    @property
    def checkpoint(self) -> Path:
        return resolve_model(self.training.model)


def check_modules(model: str, config: ModelConfig) -> None:
    """OutriderError if the model has more MTP modules than the one that is trained."""
    if config.num_nextn_predict_layers > 1:
        raise OutriderError(
            f"{model} has {config.num_nextn_predict_layers} MTP modules, which draft in turn: distill trains the module"
            " of a model that has one"
        )


def make_job(given: Mapping[str, Any], engine: Mapping[str, Any]) -> Job:
    """A job from named settings of training, machines and job. ValueError names one that is unknown or out of range."""
    _refuse_unknown(given)
    host, _, port = str(given.get("master", "")).rpartition(":")
    machines = Machines(
        ranks=int(given.get("ranks", 1)),
        count=int(given.get("nodes", 1)),
        number=int(given.get("node_rank", 0)),
        master_address=host or "127.0.0.1",
        master_port=int(port) if port.isdecimal() else 0,
    )
    own = {name: given[name] for name in _JOB_SETTINGS if name in given}
    own |= {name: Path(own[name]) for name in ("prompts", "out") if name in own}
    if "only" in given:
        own["parts"] = tuple(given["only"])
    if "temperatures" in own:
        own["temperatures"] = tuple(map(float, own["temperatures"]))
    return Job(training=_training(given), machines=machines, engine=dict(engine), **own)


def dry_run(given: Mapping[str, Any], config: ModelConfig, world_sizes: Sequence[int]) -> dict[str, Any]:
    """The memory needed to train a model of shape `config` on each number of GPUs.

    If `given` names a checkpoint with weights, the module's tensors are checked against it.
    """
    _refuse_unknown(given)
    settings = _training(given)
    check_modules(settings.model, config)
    shapes = tensor_shapes(module_shape(config, settings.expert_group_size), settings.trained)
    path = Path(settings.model).expanduser()
    checked = settings.model in BUNDLED_MODELS or has_weights(path)
    if checked:
        check_checkpoint(shapes, resolve_model(settings.model))
    elements = {trained: sum(t.elements for t in shapes if t.trained == trained) for trained in (True, False)}
    where = "all in the checkpoint, in their shapes" if checked else "no weights there to compare them with"
    return {
        "module": f"{len(shapes)} tensors ({where}): {elements[True]:,} values trained, {elements[False]:,} frozen",
        "settings": f"{settings.trained}, {settings.dtype}, ZeRO {settings.zero_stage}, offload {settings.offload}",
        "footprints": [dataclasses.asdict(footprint(config, settings, size)) for size in world_sizes],
    }


def _training(given: Mapping[str, Any]) -> TrainingSettings:
    return TrainingSettings(**{name: given[name] for name in _TRAINING_SETTINGS if name in given})


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    known = {*_TRAINING_SETTINGS, *_JOB_SETTINGS, "only", "ranks", "nodes", "node_rank", "master"}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"unknown setting {', '.join(unknown)}: known are {', '.join(sorted(known))}")
