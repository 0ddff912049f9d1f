"""Machines that vanish, and ways between them that lose one direction, lose no stream and change no output.

Each rank and gateway is in a network namespace. `benchmarks/chaos.py --nodes` runs the same for longer.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.schedule import Fault

ROOT = Path(__file__).resolve().parents[2]
FAULTS = (Fault.NODE_BLACK_HOLE, Fault.RANK_TO_LEADER_CUT, Fault.GATEWAY_TO_LEADER_CUT)
MAY_CREATE_NAMESPACES = os.geteuid() == 0 and all(shutil.which(command) for command in ("ip", "nsenter"))


@pytest.mark.full
@pytest.mark.timeout(570)
@pytest.mark.skipif(not MAY_CREATE_NAMESPACES, reason="network namespaces need root, ip and nsenter")
def test_streams_survive_machines_that_vanish_and_ways_that_are_cut() -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "chaos.py"),
        "--nodes",
        "--seed",
        "1",
        "--streams",
        "22",
        "--pairs",
        "0",
    ]
    command += ["--faults", ",".join(fault.value for fault in FAULTS), "--episodes", str(len(FAULTS))]

    run = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False
    )

    episodes = re.findall(r"^episode .*: 22 streams, (.*) of \d after .*; (\d+) wrong$", run.stdout, re.MULTILINE)
    assert sorted(episodes) == sorted((fault.value, "0") for fault in FAULTS), run.stdout + run.stderr
    assert run.returncode == 0
