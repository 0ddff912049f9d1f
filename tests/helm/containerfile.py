"""Reads helm/Containerfile, and does by hand what an engine would do with it: in a scratch directory, without one."""

import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "helm" / "Containerfile"


@dataclass(frozen=True)
class Step:
    """One instruction: RUN, COPY, ENV..."""

    instruction: str
    text: str
    stage: int


def steps() -> list[Step]:
    """With continuation lines joined, comments left out, and the number of the stage that each belongs to."""
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[Step] = []
    stage = -1
    for line in filter(str.strip, joined.splitlines()):
        instruction, _, text = line.partition(" ")
        stage += instruction == "FROM"
        found.append(Step(instruction, text.strip(), stage))
    return found


def copy_sources(target: Path) -> list[str]:
    """What the first stage's COPY steps bring, links as links. FileNotFoundError if one does not exist."""
    copied: list[str] = []
    for step in steps():
        if step.instruction == "COPY" and "--from" not in step.text:
            *sources, destination = step.text.split()
            for source in sources:
                at = target / destination if destination != "./" else target / source
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source, at, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
                    )
                else:
                    at.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, at)
                copied.append(source)
    return copied


def install(sources: Path, environment: Path) -> Path:
    """`python -m venv` and `pip install .` as the first stage does, the dependencies taken from this interpreter."""
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    wheel = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(environment / "dist"),
        str(sources),
    ]
    subprocess.run(wheel, check=True, capture_output=True)
    (made,) = (environment / "dist").glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", made], check=True)
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(purelib) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
