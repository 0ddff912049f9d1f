"""Builds the CPU kernels: once, at first use, for this machine's instruction set; kept in the user's cache folder."""

import fcntl
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

log = logging.getLogger("outrider.kernels")

SOURCES = Path(__file__).parent / "src"
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
_X86_FLAGS = {"avx512": ("-march=x86-64-v4",), "avx2": ("-march=x86-64-v3",)}
_COMPILERS = ("c++", "g++", "clang++")
_CURE = "set XDG_CACHE_HOME to a folder that can be written"


class BuildError(Exception):
    """The kernels cannot be built here; the message says why and what would help."""


@functools.cache
def instruction_set() -> str:
    """The best that this processor has: "avx512", "avx2" or "plain". OUTRIDER_CPU_ISA asks for a lesser one."""
    best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "plain")
    asked = os.environ.get("OUTRIDER_CPU_ISA", best)
    known = ("plain", "avx2", "avx512")
    if asked not in known or known.index(asked) > known.index(best):
        raise BuildError(f"OUTRIDER_CPU_ISA={asked}: this processor runs {', '.join(known[: known.index(best) + 1])}")
    return asked


def built(isa: str) -> Path:
    """The library for `isa`, built if it is not there yet. BuildError if it cannot be."""
    compiler = _compiler()
    flags = (*_FLAGS, *_X86_FLAGS.get(isa, ()))
    path = _cache() / f"kernels-{isa}-{_digest(compiler, flags)}.so"
    if not path.exists():
        with _alone(path.with_suffix(".lock")):
            if not path.exists():
                _build(compiler, flags, isa, path)
    return path


def _compiler() -> str:
    asked = os.environ.get("CXX")
    found = next((path for name in ((asked,) if asked else _COMPILERS) if (path := shutil.which(name))), None)
    if found is None:
        looked = f"CXX={asked}" if asked else ", ".join(_COMPILERS)
        raise BuildError(f"no C++ compiler here (looked for {looked}): install g++ 11 or newer")
    return found


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


def _digest(compiler: str, flags: tuple[str, ...]) -> str:
    """Of all that goes into the library, the compiler's version included."""
    version = _run(compiler, "--version").stdout
    digest = hashlib.sha256("\n".join((version, *flags)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Ranks that start together build once: the others wait."""
    try:
        file = path.open("w")
    except OSError as error:
        raise BuildError(f"cannot write {path.parent} ({error.strerror}): {_CURE}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(compiler: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{compiler} is no compiler that runs here ({error.strerror}): set CXX to one") from error


def _build(compiler: str, flags: tuple[str, ...], isa: str, path: Path) -> None:
    _say(f"building the CPU kernels for {isa}, once: about 10 s")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / path.name
        done = _run(compiler, *flags, str(SOURCES / "library.cpp"), "-o", str(out))
        if done.returncode != 0 or not out.exists():
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise BuildError(f"{compiler} could not build the CPU kernels: {first}")
        out.replace(path)
    _say(f"built in {time.monotonic() - began:.0f} s: {path}")


def _say(line: str) -> None:
    """To whoever waits at a terminal, or else to the log."""
    if sys.stderr.isatty():
        sys.stderr.write(f"outrider: {line}\n")
    else:
        log.info(line)
