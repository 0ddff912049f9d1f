"""The promises that the whole tree keeps: small functions and files, one-way imports, no shadowed packages."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cluster", "workers", "kernels", "proto")


def _sources() -> list[Path]:
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return [path for path in files if "_pb2" not in path.name]


def _ninety_percent(lengths: list[int]) -> int:
    return sorted(lengths)[int(len(lengths) * 0.9)]


def test_nine_functions_in_ten_are_at_most_25_lines_long() -> None:
    trees = [ast.parse(path.read_text()) for path in _sources()]
    functions = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]

    lengths = [(n.end_lineno or n.lineno) - n.lineno + 1 for n in functions]

    assert len(lengths) > 300
    assert _ninety_percent(lengths) <= 25


def test_nine_files_in_ten_are_at_most_250_lines_long() -> None:
    lengths = [path.read_text().count("\n") for path in _sources()]

    assert _ninety_percent(lengths) <= 250


def test_no_code_folder_has_an_init_file_that_would_shadow_other_packages() -> None:
    assert [p for folder in FOLDERS for p in (ROOT / folder).rglob("__init__.py")] == []


def test_every_silenced_type_error_says_why() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"#\s*type:\s*ignore", line) and not re.search(r"type:\s*ignore\[[\w, -]+\]\s+#\s*\S", line)
    ]

    assert bare == []


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("outrider", ("torch", "ray", "grpc")),
        ("outrider.cluster.cli.app", ("torch", "ray")),
        ("outrider.cluster.gateway.server", ("torch", "ray")),
        ("outrider.cluster.client.client", ("torch", "ray")),
        ("outrider.workers.engine.scheduling.scheduler", ("torch",)),
        ("outrider.workers.serving.rank", ("torch",)),
    ],
)
def test_importing_a_control_plane_module_does_not_load_the_data_plane(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
    )

    assert loaded.stdout.strip() == "[]"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}
