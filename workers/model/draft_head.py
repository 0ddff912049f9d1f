"""Which tokens the drafting head knows: the most frequent of the vocabulary, where the checkpoint says which.

A head cut to them costs less, and loses nothing but drafts: it never decides what is emitted. The file holds one
sorted tensor, `token_ids`; workers/training/draft_head.py makes it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from outrider.workers.errors import CheckpointError
from outrider.workers.model.config import ModelConfig

DRAFT_HEAD_FILE = "draft_head.safetensors"


def draft_head_ids(path: Path, model: ModelConfig) -> NDArray[np.int32] | None:
    """The ids beside the checkpoint in `path`, ascending; None if there are none. CheckpointError if damaged."""
    file = path / DRAFT_HEAD_FILE
    if not file.is_file():
        return None
    try:
        ids = load_file(file)["token_ids"].astype(np.int32)
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not len(ids) or ids[0] < 0 or ids[-1] >= model.vocab_size or (np.diff(ids) <= 0).any():
        raise CheckpointError(f"{file} must hold ascending token ids below the vocabulary's {model.vocab_size}")
    return ids
