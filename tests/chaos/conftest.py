"""Serves one cluster, with what injects faults into it, for all tests of a file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.cluster import Cluster

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(SOURCE))
        with contextlib.closing(Cluster()) as cluster:
            yield cluster
