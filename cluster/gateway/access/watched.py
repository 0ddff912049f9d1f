"""Files that are reloaded when they change, as Kubernetes replaces the files of a mounted Secret."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.gateway.files")
T = TypeVar("T")
Signature = tuple[tuple[int, int, int], ...]


class Watched(Generic[T]):
    """The result of `read`. If changed files cannot be read, that is logged once and the last valid value stays.

    Thread-safe: at worst, two threads read the same change twice.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Raises OutriderError if the files cannot be read now."""
        self._paths, self._read = tuple(paths), read
        self._seen = _signature(self._paths)
        self._value = read()

    @property
    def value(self) -> T:
        self.refresh()
        return self._value

    def refresh(self) -> bool:
        """Reloads the value if the files have changed. Whether it did."""
        try:
            seen = _signature(self._paths)
            if seen == self._seen:
                return False
            self._seen = seen
            self._value = self._read()
        except OutriderError as error:
            logs.event(log, logging.ERROR, "a changed file is invalid: the previous contents stay in use", reason=error)
            return False
        logs.event(log, logging.INFO, "reloaded changed files", files=[str(path) for path in self._paths])
        return True


def _signature(paths: Sequence[Path]) -> Signature | None:
    """Changes when a file is written or replaced, also through symbolic links. None: a file is missing."""
    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return None
    return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in stats)
