"""How a figure of a benchmark is written down: with its command, machine and date."""

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def record(command: str, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with what it takes to repeat them."""
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return {
        "command": command,
        "OMP_NUM_THREADS": threads,
        "machine": machine(),
        "date": date.today().isoformat(),
        **figures,
    }


def save(name: str, command: str, figures: dict[str, Any]) -> Path:
    """Writes results/NAME.json with what it takes to repeat it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record(command, figures), indent=1) + "\n")
    return path
