"""A folder of packed weights, created once per machine and mapped by all ranks that need the same weights.

A file holds one slice of one part of a model (a layer, its experts, the head, ..). Its name is a hash of everything
that decides its bytes. It is created by one rename, checked when it is opened, and never changed. File locks show
which processes write and read; they are released when the process ends, for whatever reason.
"""

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from outrider.kernels.cpu.build import instruction_set
from outrider.kernels.cpu.compiler import SOURCES
from outrider.kernels.cpu.packed_file import DamagedFileError, FileWriter, MappedWeights
from outrider.kernels.cpu.packing import Packer
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel import slices

log = logging.getLogger("outrider.loading")

_WHOLE, _PARTIAL = ".packed", ".part"
_ABANDONED_S = 3600.0  # a temporary file not written to for this long is abandoned


class WeightCache:
    """The parts of one checkpoint. Safe from any thread."""

    def __init__(self, folder: Path, max_bytes: int, checkpoint: Checkpoint) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        identity = checkpoint.identity()
        self._own = folder / f"{checkpoint.path.name}-{identity[:12]}"
        self._decides = (identity, instruction_set(), _code_digest())
        self._lock, self._writes = threading.Lock(), True

    def packer(self, name: str, how: tuple[object, ...], fill: Callable[[Packer], object]) -> MappedWeights | None:
        """Part `name` of the model, sliced and packed as `how` says; `fill` creates it if it is missing or damaged.

        None, with a warning, if it cannot be stored. The caller then keeps the weights in its own memory.
        """
        digest = hashlib.sha256(repr((*self._decides, name, how)).encode()).hexdigest()
        path = self._own / f"{name}-{digest[:16]}{_WHOLE}"
        try:
            with contextlib.suppress(FileNotFoundError, DamagedFileError):
                return _mapped(path)
            return self._made(path, fill) if self._writes else None
        except (OSError, DamagedFileError) as error:
            self._give_up(path, error)
            return None

    def _give_up(self, path: Path, error: Exception) -> None:
        with self._lock:
            first, self._writes = self._writes, False
        if first:
            log.warning("weight_cache_dir: cannot keep %s (%s): weights stay in private memory", path, error)

    def _made(self, path: Path, fill: Callable[[Packer], object]) -> MappedWeights:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            try:
                return _mapped(path)  # another process created it meanwhile
            except FileNotFoundError:
                pass
            except DamagedFileError as error:
                log.warning("weight_cache_dir: %s is damaged (%s) and will be created again", path, error)
            _write(path, fill)
            return _mapped(path)

    def trim(self) -> None:
        """Deletes the least recently used files until the folder is within its limit.

        Files that a process has mapped are kept, and so are all of this checkpoint.
        """
        files = [path for path in self._folder.glob("*/*") if path.suffix in (_WHOLE, _PARTIAL)]
        found = [(path, status) for path in files if (status := _status(path)) is not None]
        excess = sum(status.st_size for _, status in found) - self._max_bytes
        for path, status in sorted(found, key=lambda each: each[1].st_mtime):
            if path.suffix == _PARTIAL:
                goes = time.time() - status.st_mtime > _ABANDONED_S
            else:
                goes = excess > 0 and path.parent != self._own
            if goes and _deleted(path):
                excess -= status.st_size


def _write(path: Path, fill: Callable[[Packer], object]) -> None:
    """Writes a file completely or not at all. One process at a time."""
    partial = path.with_suffix(_PARTIAL)
    try:
        with partial.open("w+b") as file:
            writer = FileWriter(file)
            fill(writer)
            writer.finish()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    log.info("packed %s", path)


def _mapped(path: Path) -> MappedWeights:
    """Raises FileNotFoundError or DamagedFileError."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # held while it is mapped
        weights = MappedWeights(file)
    with contextlib.suppress(OSError):  # a file or folder of another user
        os.utime(path)
    return weights


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Mutual exclusion between processes by a lock on the file `path`, which exists while it is held."""
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is(path, file):  # the previous holder deleted it
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is(path: Path, file: IO[str]) -> bool:
    status = _status(path)
    return status is not None and os.path.samestat(status, os.fstat(file.fileno()))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _deleted(path: Path) -> bool:
    """Whether it was deleted: no process had it mapped."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True


@functools.cache
def _code_digest() -> str:
    """A digest of the code that reads, slices and packs weights, so that versions never share files."""
    here = Path(__file__).parent
    folders = here, here.parent, SOURCES.parent, SOURCES
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in (".py", ".h", ".cpp")]
    digest = hashlib.sha256()
    for file in (*files, Path(slices.__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()
