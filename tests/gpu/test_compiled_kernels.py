"""Kernels compile for sm_90 and sm_100: products use tensor cores, and nothing spills."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
IN_FP8 = {
    "linear, 4 rows", "linear, 64 rows", "linear, 2048 rows", "gate and up", "gate and up, sorted", "down",
    "gate and up of spread experts", "gate and up of spread experts, sorted", "down of spread experts",
    "down of spread experts, sorted",
}  # fmt: skip
MOST_SHARED, MOST_TENSOR_MEMORY = 227 * 1024, 512  # bytes and columns that a program may have, on sm_90 and sm_100


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", str(HERE / "compiling.py"), str(tmp_path_factory.mktemp("cubin"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_that_is_launched_is_compiled_here(figures: list[dict[str, Any]]) -> None:
    sources = [file.read_text() for file in (HERE.parents[1] / "kernels" / "gpu").glob("*.py")]
    launched = {name for source in sources for name in re.findall(r"^\s+(_\w+)\[", source, re.MULTILINE)}

    assert launched == {each["function"] for each in figures}


def test_no_kernel_spills(figures: list[dict[str, Any]]) -> None:
    spilling = {
        (each["kernel"], each["capability"]): each["stack"] + each["local"]
        for each in figures
        if each["stack"] + each["local"] + each["STL"] + each["LDL"] > 0
    }

    assert spilling == {}


def test_every_kernel_fits_on_a_multiprocessor(figures: list[dict[str, Any]]) -> None:
    """Triton compiles what does not fit, and fails when it is loaded."""
    for each in figures:
        assert each["shared"] <= MOST_SHARED, each
        assert each["tensor_memory"] <= MOST_TENSOR_MEMORY, each


def test_products_go_to_tensor_cores(figures: list[dict[str, Any]]) -> None:
    for each in figures:
        hopper = each["capability"] == 90
        if each["kernel"] in IN_FP8:
            assert each["QGMMA" if hopper else "UTCQMMA"] > 0, each
        if each["kernel"].startswith("attention"):
            assert each["HGMMA" if hopper else "UTCHMMA"] > 0, each
