"""Files that may be replaced while they are in use, as Kubernetes replaces a mounted Secret's: read when changed."""

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
    """What `read` makes of the files. A change that cannot be read is logged once, and the last good value stays.

    May be asked from any thread: the worst that two can do is to read the same change twice.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """OutriderError if the files cannot be read now."""
        self._paths, self._read = tuple(paths), read
        self._seen = _signature(self._paths)
        self._value = read()

    @property
    def value(self) -> T:
        self.refresh()
        return self._value

    def refresh(self) -> bool:
        """Whether the value has just been read anew."""
        try:
            seen = _signature(self._paths)
            if seen == self._seen:
                return False
            self._seen = seen
            self._value = self._read()
        except OutriderError as error:
            logs.event(log, logging.ERROR, "a changed file cannot be used: what it held before stays", reason=error)
            return False
        logs.event(log, logging.INFO, "changed files were read", files=[str(path) for path in self._paths])
        return True


def _signature(paths: Sequence[Path]) -> Signature | None:
    """Changes when a file is written, or another put in its place (through links too). None: one is not there."""
    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return None
    return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in stats)
