"""What the benchmarks share: prompts, repeats, and how a result is written down."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def prompts(kind: str, count: int) -> list[str]:
    """Held-out text of a kind, "code" or "prose"."""
    return list(json.loads((ROOT / "cluster" / "demo_prompts.json").read_text())[kind][:count])


def interleaved(arms: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Runs the arms in turn, so that the machine's moods meet all alike. Each arm returns its figure."""
    figures: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, run in arms.items():
            figures[name].append(run())
    return figures


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


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


def save(name: str, command: str, figures: dict[str, Any]) -> Path:
    """Writes results/NAME.json with what it takes to repeat it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    record = {"command": command, "OMP_NUM_THREADS": threads, "machine": machine(), "date": date.today().isoformat()}
    record |= figures
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
