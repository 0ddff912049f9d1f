"""benchmarks/gpu_check.py runs without a GPU too, and says what outside checks read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"


@pytest.mark.full
def test_it_runs_on_a_pretended_gpu(tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    subprocess.run([sys.executable, str(SCRIPT), "--pretend", "--json", str(file)], check=True, capture_output=True)
    report = json.loads(file.read_text())

    assert report["device"] == "pretended"
    assert report["round"]["launches"] <= 850
    assert (report["round"]["host_syncs"], report["draft"]["launches"] <= 20) == (1, True)
    assert all({"name", "error", "share_of_limit"} <= set(kernel) for kernel in report["kernels"])
    assert max(kernel["error"] for kernel in report["kernels"]) < 0.01
    assert report["identical"] is True
