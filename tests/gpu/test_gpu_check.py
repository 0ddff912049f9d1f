"""benchmarks/gpu_check.py runs without a GPU, and its JSON has the keys that readers of it use."""

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
    assert report["round"]["copies"] == 0
    spread = report["round"]["of_spread_experts"]
    assert spread["host_syncs"] == 1 + 58, "one in each MoE layer, for the sizes of its exchanges"
    assert [copy.split()[1] for copy in report["round"]["copies_outside"]] == ["device", "host"]
    assert all({"name", "error", "share_of_limit"} <= set(kernel) for kernel in report["kernels"])
    assert max(kernel["error"] for kernel in report["kernels"]) < 0.01
    assert max(case["error"] for case in report["dispatch"]) < 0.01
    assert report["identical"] is True
    assert report["graph_equals_eager"] is True
