"""The generated protobuf modules are committed, and are those of the .proto files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    sources = sorted(str(path) for path in (ROOT / "proto").glob("*.proto"))
    outputs = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-Ioutrider/proto={ROOT / 'proto'}", *outputs, *sources]
    subprocess.run(command, check=True, capture_output=True)
    return out / "outrider" / "proto"


def _without_versions(text: str) -> str:
    """Another release of the compiler writes its own version, as text and as three numbers."""
    return re.sub(r"\b\d+\.\d+\.\d+\b", "VERSION", re.sub(r"(PUBLIC,)\n\s+\d+,\n\s+\d+,\n\s+\d+,", r"\1", text))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["cluster", "inference", "worker"])
def test_a_generated_module_is_what_its_proto_file_says(generated: Path, name: str, suffix: str) -> None:
    committed = (ROOT / "proto" / f"{name}{suffix}").read_text()

    assert _without_versions(committed) == _without_versions((generated / f"{name}{suffix}").read_text())


def test_every_generated_module_is_committed_and_none_is_left_over(generated: Path) -> None:
    committed = {path.name for path in (ROOT / "proto").iterdir() if path.name.endswith(SUFFIXES)}

    assert committed == {path.name for path in generated.iterdir()}
