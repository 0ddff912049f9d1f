import socket
import subprocess
import sys
from pathlib import Path

import pytest

import outrider
from outrider.cluster.cli.app import run

SOURCE = Path(__file__).parents[4] / "src"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status, and what stood on stderr."""
    status = run(arguments)
    return status, capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"outrider {outrider.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("serve", "--sped"), "--sped"),
        (("serve", "--set", "max_num_seq=4"), "max_num_seqs"),
        (("serve", "--speculation", "17"), "speculation"),
        (("serve", "--config", "/nowhere.yaml"), "/nowhere.yaml"),
        (("generate",), "PROMPT"),
        (("generate", "x", "--temperature=-1"), "temperature"),
        (("generate", "x", "--top-k", "9999999999"), "top_k"),
        (("generate", "\udcff"), "prompt"),  # what Python makes of an argument that is no UTF-8
        (("generate", "x", "--speculation", "fast"), "speculation"),
        (("generate", "x", "--prompt-logprobs", "2"), "--prompt-logprobs needs --json"),
        (("generate", "x", "-n", "2"), "--n needs --json"),
        (("gateway",), "--controller"),
        (("gateway", "--controller", "nowhere"), "must be HOST:PORT, got 'nowhere'"),
        (("status", "--address", "host:99999"), "must be HOST:PORT, got 'host:99999'"),
        (("gateway", "--controller", "h:1", "--max-live-requests", "0"), "max_live_requests"),
        (("--log-level", "loud", "status"), "--log-level"),
        (("demo", "--prompts", "0"), "--prompts"),
        (("distill", "--zero-stage", "4", "--only", "train"), "zero_stage"),
        (("distill", "--set", "dept=3", "--only", "train"), "dept"),
        (("distill", "--engine", "port=3"), "port"),
        (("distill",), "prompts"),
        (("explode",), "explode"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_bad_usage_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    status, error = said(capsys, *arguments)

    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("serve", "--model", "nowhere"), "unknown model 'nowhere'"),
        (("serve", "--pipeline-parallel-size", "99"), "99"),
        (("generate", "x", "--address", "127.0.0.1:1"), "cannot reach 127.0.0.1:1"),
        (("status", "--address", "127.0.0.1:1"), "cannot reach 127.0.0.1:1"),
        (("demo", "--json", "/nowhere/demo.json"), "/nowhere/demo.json: there is no directory /nowhere"),
        (("demo", "--report", "/"), "cannot write /: it is a directory"),
        (("bench", "--json", "/nowhere/bench.json"), "/nowhere/bench.json"),
        (("distill", "--dry-run", "--model", "nowhere"), "unknown model 'nowhere'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_cannot_be_done_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    status, error = said(capsys, *arguments)

    assert status == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error


@pytest.mark.parametrize("option", ["--port", "--http-port", "--metrics-port"])
def test_a_port_in_use_is_known_before_anything_starts(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])

        status, error = said(capsys, "serve", "--port", "0", "--http-port", "0", option, port)

    assert status == 1
    assert error == f"error: 127.0.0.1:{port} is in use by another program: choose another {option}\n"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(outrider.OutriderError):
        run(["--debug", "status", "--address", "127.0.0.1:1"])


def test_an_option_that_is_not_there_is_bad_usage_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    status, error = said(capsys, "serve", "--hot-spares", "1")

    assert status == 2
    assert "--hot-spares" in error


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_without_ray_a_command_that_needs_it_says_so(command: str) -> None:
    run = f"from outrider.cluster.cli.app import run; sys.exit(run(['{command}']))"
    code = f"import sys; sys.modules['ray'] = None; {run}"

    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr == "error: this command requires Ray, which is not installed: pip install 'ray[default]'\n"


def loaded_by(*modules: str) -> set[str]:
    """What is loaded after importing `modules` in a fresh interpreter."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_clients_and_gateways_start_without_torch_and_without_ray() -> None:
    cluster = "outrider.cluster"
    modules = ("cli.app", "cli.commands.generate", "cli.commands.status", "client.client", "gateway.server")

    loaded = loaded_by(*(f"{cluster}.{module}" for module in modules))

    assert not {"torch", "ray", "transformers"} & loaded


def test_the_controller_and_serve_start_without_torch() -> None:
    assert "torch" not in loaded_by("outrider.cluster.cli.commands.serve", "outrider.workers.serving.actor")


def test_the_command_itself_loads_neither_grpc_nor_any_command() -> None:
    loaded = loaded_by("outrider.cluster.cli.app")

    assert not {"grpc", "torch", "ray", "outrider.cluster.cli.commands.serve"} & loaded
