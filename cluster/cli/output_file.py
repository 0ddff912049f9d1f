"""Checks output files of commands before their work starts."""

import os
from pathlib import Path

from outrider.workers.types.errors import OutriderError


def refuse_unwritable(path: Path, option: str) -> None:
    """Raises OutriderError if the file of `option` cannot be written, before a command spends minutes."""
    if not path.parent.is_dir():
        raise OutriderError(
            f"cannot write {path}: there is no directory {path.parent}; create it, or choose another {option}"
        )
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutriderError(f"cannot write {path}: it is a directory, or permission is denied; choose another {option}")
