"""Loads the benchmarks under test as their scripts name them.

Their folder is on the path for that moment only: its kernels.py would stand before the package that transformers
looks for under that name.
"""

import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"

before = list(sys.path)
sys.path.insert(0, str(BENCHMARKS))
for name in (
    "beliefs",
    "byte_models",
    "common",
    "completions",
    "decisions",
    "decode",
    "faults.figures",
    "faults.oracle",
    "faults.schedule",
    "generation",
    "linears",
    "mixed_load",
    "mixed_load_figures",
    "package_prompts",
    "planner",
    "ranks",
    "record",
    "recorders",
    "simulation",
    "simulated",
    "report",
    "reporting.svg",
    "reporting.tables",
    "round",
    "scout",
    "serve",
    "sharding",
    "speculation",
):
    importlib.import_module(name)
sys.path[:] = before
