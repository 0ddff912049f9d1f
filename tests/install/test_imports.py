"""What importing costs: clients, gateways and the command's help load no torch, no Ray and no DeepSpeed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = ("torch", "ray", "deepspeed", "triton", "numpy", "transformers", "kubernetes")
HELP = "from outrider.cluster.cli.app import run; assert run([*{}, '--help']) == 0"
COMMANDS = ("serve", "gateway", "demo", "generate", "status", "plan", "top", "bench", "distill", "scale", "drain")


def loaded(code: str) -> str:
    """What of HEAVY a new process has loaded behind `code`."""
    shown = f"{code}\nimport sys; print('loaded', *(name for name in {HEAVY} if name in sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", shown], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("loaded").strip()


@pytest.mark.parametrize("name", ["Client", "AsyncClient", "SamplingParams", "Tool", "StructuredOutputsParams"])
def test_what_clients_need_loads_nothing_heavy(name: str) -> None:
    assert loaded(f"import outrider; outrider.{name}") == ""


@pytest.mark.parametrize("module", ["server", "http.app", "service"])
def test_a_gateway_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import outrider.cluster.gateway.{module}") == ""


def test_help_loads_nothing_heavy() -> None:
    assert loaded(HELP.format("()")) == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    assert loaded(HELP.format((command,))) == ""


def test_what_is_heavy_would_be_seen() -> None:
    assert loaded("import numpy") == "numpy"


@pytest.mark.parametrize(
    ("missing", "cure"),
    [
        ("ray", "pip install 'ray[default]'"),
        ("torch", "pip install torch"),
        ("kubernetes", "pip install kubernetes"),
        ("opentelemetry", "pip install 'outrider[otel]'"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(missing: str, cure: str, tmp_path: Path) -> None:
    imports = {
        "ray": "from outrider.cluster.ray_session import import_ray; import_ray()",
        "torch": "import outrider.workers.sampling.sampling",
        "kubernetes": "import outrider.cluster.controller.scaling.kubernetes",
        "opentelemetry": (
            "from outrider.workers.serving.observability.tracing import open_tracing; "
            "open_tracing('http://localhost:1', 'x')"
        ),
    }
    code = f"""
import sys
sys.modules[{missing!r}] = None  # as if it were not installed
from outrider.cluster.cli import app as cli
@cli.app.command()
def try_it() -> None:
    {imports[missing]}
sys.exit(cli.run(["try-it"]))
"""
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert missing in done.stderr.lower()
    assert cure in done.stderr
    assert len(done.stderr.splitlines()) == 1
