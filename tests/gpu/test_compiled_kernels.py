"""Kernels compile for sm_90 and sm_100: products use tensor cores, and nothing spills."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
IN_FP8 = {"linear, 4 rows", "linear, 64 rows", "linear, 2048 rows", "gate and up", "gate and up, sorted", "down"}
SPILLS = {"attention": 408, "attention, FP8 cache": 416}  # allowed bytes of stack: its accumulator is 64 x 512 float32


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", str(HERE / "compiling.py"), str(tmp_path_factory.mktemp("cubin"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_kernel_spills(figures: list[dict[str, Any]]) -> None:
    spilling = {
        (each["kernel"], each["capability"]): each["stack"]
        for each in figures
        if each["stack"] + each["local"] > SPILLS.get(each["kernel"], 0)
    }

    assert spilling == {}


def test_products_go_to_tensor_cores(figures: list[dict[str, Any]]) -> None:
    for each in figures:
        hopper = each["capability"] == 90
        if each["kernel"] in IN_FP8:
            assert each["QGMMA" if hopper else "UTCQMMA"] > 0, each
        if each["kernel"].startswith("attention"):
            assert each["HGMMA" if hopper else "UTCHMMA"] > 0, each
