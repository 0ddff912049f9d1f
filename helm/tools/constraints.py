"""Writes helm/constraints.txt, the versions that the image is built with: those that outrider runs with here.

PYTHONPATH=src python helm/tools/constraints.py
"""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).resolve().parents[1] / "constraints.txt"
_HEAD = "# Versions for the image: those that tests ran with. Written by helm/tools/constraints.py.\n"


def direct(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What `name` with `extras` requires on this platform."""
    for wanted in map(Requirement, metadata.requires(name) or ()):
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield wanted


def _all(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Adds what `name` requires, and what that does, to `seen`."""
    for wanted in direct(name, extras):
        one = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if one not in seen:
            seen.add(one)
            _all(*one, seen)


def lines() -> list[str]:
    """Without a build's own suffix: +cpu and +cu130 are the same version."""
    seen: set[tuple[str, frozenset[str]]] = set()
    _all("outrider", frozenset({"otel", "huggingface"}), seen)
    names = sorted({name for name, _ in seen})
    return [f"{name}=={metadata.version(name).partition('+')[0]}\n" for name in names]


if __name__ == "__main__":
    FILE.write_text(_HEAD + "".join(lines()))
