"""The C++ compiler and its arguments. Does not import torch, since the wheel is built without it."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
INSTRUCTION_SETS = ("plain", "avx2", "avx512")  # in ascending order
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


class BuildError(Exception):
    """The kernels cannot be built here. The message gives the reason and what would help."""


def find_compiler() -> str:
    """The compiler from CXX, or the first one found. BuildError if there is none."""
    asked = os.environ.get("CXX")
    found = next((path for name in ((asked,) if asked else _COMPILERS) if (path := shutil.which(name))), None)
    if found is None:
        looked = f"CXX={asked}" if asked else ", ".join(_COMPILERS)
        raise BuildError(f"no C++ compiler here (looked for {looked}): install g++ 11 or newer")
    return found


def flags(isa: str) -> tuple[str, ...]:
    return (*_FLAGS, *_X86_FLAGS.get(isa, ()))


def digest(isa: str, *more: str) -> str:
    """A digest of the sources, the flags and `more`."""
    found = hashlib.sha256("\n".join((*more, *flags(isa))).encode())
    for source in sorted(SOURCES.iterdir()):
        found.update(source.read_bytes())
    return found.hexdigest()[:16]


def version(compiler: str) -> str:
    return _run(compiler, "--version").stdout


def shipped_name(isa: str) -> str:
    """The name of the wheel's library that was compiled from these sources."""
    return f"kernels-{isa}-{digest(isa)}.so"


def compile_library(compiler: str, isa: str, out: Path) -> None:
    """BuildError contains the compiler's message."""
    done = _run(compiler, *flags(isa), str(SOURCES / "library.cpp"), "-o", str(out))
    if done.returncode != 0 or not out.exists():
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise BuildError(f"{compiler} could not build the CPU kernels: {first}")


def _run(compiler: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{compiler} cannot be run as a compiler ({error.strerror}): set CXX to another") from error
