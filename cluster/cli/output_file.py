"""Files that commands write when their work is done."""

import os
from pathlib import Path

from outrider.workers.types.errors import OutriderError


def refuse_unwritable(path: Path, option: str) -> None:
    """OutriderError if the file that `option` names cannot be written: known before minutes are spent."""
    if not path.parent.is_dir():
        raise OutriderError(
            f"cannot write {path}: there is no directory {path.parent}; make it, or choose another {option}"
        )
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutriderError(f"cannot write {path}: it is a directory, or you may not; choose another {option}")
