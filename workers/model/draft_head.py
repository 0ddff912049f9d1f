"""The tokens that the draft head can propose: the most frequent ones, if the checkpoint lists them.

A reduced head costs less. It can only lose drafts, since drafts never decide what is emitted. The file holds one
sorted tensor, `token_ids`; workers/training/draft_head.py creates it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig

DRAFT_HEAD_FILE = "draft_head.safetensors"


def draft_head_ids(path: Path, model: ModelConfig) -> NDArray[np.int32] | None:
    """The ids from the checkpoint folder `path`, ascending; None if it lists none. CheckpointError if damaged."""
    file = path / DRAFT_HEAD_FILE
    if not file.is_file():
        return None
    try:
        ids = load_file(file)["token_ids"]
    except (SafetensorError, KeyError, OSError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not _are_ascending_tokens(ids, model.vocab_size):
        raise CheckpointError(f"{file} must hold ascending token ids below the vocabulary's {model.vocab_size}")
    return np.ascontiguousarray(ids, dtype=np.int32)


def _are_ascending_tokens(ids: NDArray[Any], vocab_size: int) -> bool:
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        return False
    wide = ids.astype(np.int64)
    return bool(wide[0] >= 0 and wide[-1] < vocab_size and (np.diff(wide) > 0).all())
