"""Where `make test-clients` has installed other projects' clients, and how they are run."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
SCOUT = ROOT / "models" / "scout"
TIMEOUT_S = 600


def program(environment: str, name: str = "python") -> str:
    """Its path. Skips the test where the environment is not installed."""
    found = ROOT / ".venv-clients" / environment / "bin" / name
    if not found.exists():
        pytest.skip(f"{environment} is not installed: make test-clients installs it")
    return str(found)


def vllm() -> str:
    """The interpreter that has vLLM, some gigabytes. Skips the test where it is not installed."""
    found = ROOT / "benchmarks" / "peers" / ".envs" / "vllm" / "bin" / "python"
    if not found.exists():
        pytest.skip("vLLM is not installed: benchmarks/peers/install-vllm installs its CPU build")
    return str(found)


def output_of(*command: str, folder: Path | None = None) -> str:
    """What it prints. Fails the test if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
