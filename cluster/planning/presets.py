"""Models that can be planned by name, without their weights."""

from pathlib import Path

from outrider.workers.config import BUNDLED_MODELS, resolve_model
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig

_MODELS = Path(__file__).parent / "models"
PRESETS = {"deepseek-v3": "deepseek_v3", "deepseek-r1": "deepseek_v3"}  # both have the same shape


def load_shape(model: str) -> ModelConfig:
    """The shape of a preset, a bundled model or a checkpoint directory. Raises CheckpointError for another name."""
    if model in PRESETS:
        return ModelConfig.load(_MODELS / PRESETS[model])
    try:
        return ModelConfig.load(resolve_model(model, weights=False))
    except CheckpointError as error:
        if "unknown model" not in str(error):
            raise
        known = ", ".join([*PRESETS, *BUNDLED_MODELS])
        raise CheckpointError(
            f"unknown model {model!r}: not a directory with a config.json, and not one of {known}"
        ) from None
