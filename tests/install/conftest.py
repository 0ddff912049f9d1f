"""One wheel for all tests here: built from a copy of the sources, which is minutes of compiling, or the one that CI has
just built and put into the folder $WHEELS."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "src", "cluster", "workers", "kernels", "proto")


def copy_sources(target: Path) -> Path:
    """What a wheel is built from."""
    for name in (*_SOURCES, "models"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, target)
    return target


def build_wheel(sources: Path, out: Path, env: dict[str, str] | None = None) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(sources)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if found := [*Path(os.environ["WHEELS"]).glob("*.whl")] if "WHEELS" in os.environ else []:
        return found[0]
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    return build_wheel(copy_sources(sources), folder / "dist")
