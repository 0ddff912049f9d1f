"""Finds the CPU kernels for this machine's instruction set: those of the wheel, or built once, at first use.

Built kernels are stored in the user's cache folder.
"""

import fcntl
import functools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from outrider.kernels.cpu.compiler import (
    INSTRUCTION_SETS,
    BuildError,
    compile_library,
    digest,
    find_compiler,
    shipped_name,
    version,
)

log = logging.getLogger("outrider.kernels")

SHIPPED = Path(__file__).parent / "shipped"  # compiled with the wheel; absent in a checkout
_CURE = "set XDG_CACHE_HOME to a folder that can be written"


@functools.cache
def instruction_set() -> str:
    """The best one of this processor: "avx512", "avx2" or "plain". OUTRIDER_CPU_ISA selects a lesser one."""
    best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "plain")
    asked = os.environ.get("OUTRIDER_CPU_ISA", best)
    able = INSTRUCTION_SETS[: INSTRUCTION_SETS.index(best) + 1]
    if asked not in able:
        raise BuildError(f"OUTRIDER_CPU_ISA={asked}: this processor supports {', '.join(able)}")
    return asked


def built(isa: str) -> Path:
    """The library for `isa`, from the wheel or the cache, built if needed. BuildError if it cannot be built."""
    shipped = SHIPPED / shipped_name(isa)
    if shipped.exists():
        return shipped
    compiler = find_compiler()
    path = _cache() / f"kernels-{isa}-{digest(isa, version(compiler))}.so"
    if not path.exists():
        with _alone(path.with_suffix(".lock")):
            if not path.exists():
                _build(compiler, isa, path)
    return path


def _cache() -> Path:
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise BuildError(f"there is no home folder to keep the CPU kernels in: {_CURE}") from error
    folder = Path(root) / "outrider"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"cannot write {folder} ({error.strerror}): {_CURE}") from error
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """A lock, so that ranks that start together build once."""
    try:
        file = path.open("w")
    except OSError as error:
        raise BuildError(f"cannot write {path.parent} ({error.strerror}): {_CURE}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(compiler: str, isa: str, path: Path) -> None:
    _say(f"building the CPU kernels for {isa}, once: this takes a minute or two")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / path.name
        compile_library(compiler, isa, out)
        out.replace(path)
    _say(f"built in {time.monotonic() - began:.0f} s: {path}")


def _say(line: str) -> None:
    """Writes to stderr if it is a terminal, else to the log."""
    if sys.stderr.isatty():
        sys.stderr.write(f"outrider: {line}\n")
    else:
        log.info(line)
