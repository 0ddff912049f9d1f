"""Loads the modules of benchmarks/chaos.py as tests/unit/benchmarks does, and serves one cluster for all tests here."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

before = list(sys.path)
sys.path.insert(0, str(BENCHMARKS))
for name in (
    "common",
    "faults.cluster",
    "faults.cuts",
    "faults.load",
    "faults.poison",
    "faults.requests",
    "faults.schedule",
):
    importlib.import_module(name)
sys.path[:] = before

from faults.cluster import Cluster  # noqa: E402  # found through the path above


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(BENCHMARKS.parent / "src"))
        with contextlib.closing(Cluster()) as cluster:
            yield cluster
