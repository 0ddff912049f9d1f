"""What starting a model takes, with and without a cache of packed weights: seconds, and private memory.

    python benchmarks/engine/start_time.py --model DIRECTORY [--dtype bfloat16] [--ranks 1,2] [--repeats 15]

Several ranks are data-parallel, and need the same dense weights and experts. "first" finds the cache empty, "again"
full. A rank's private memory is what would be given back if it ended; the peak is of samples, ten a second. Then rounds
of one row are timed over private weights, in huge pages, and over mapped ones, in turn.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers
from benchmarks.common.repeats import interleaved, median, seconds
from benchmarks.common.results import save
from benchmarks.kernels.model_parts import Loaded
from outrider import LLM
from outrider.workers.config import resolve_model
from outrider.workers.model.compiled.weight_cache import WeightCache
from outrider.workers.model.weights import Checkpoint

CONTEXT = 128
_SAMPLES_PER_S = 10
_ROOM = 1 << 40


class Sampled:
    """Memory of the ranks in MB, by rank, while it is entered: what smaps says of it last, and the most."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._peaks: dict[int, float] = {}

    def __enter__(self) -> "Sampled":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def processes(self) -> list[psutil.Process]:
        """One rank runs in this process, several as its children."""
        own = psutil.Process()
        return [own] if self._ranks == 1 else [child for child in own.children() if "rank" in " ".join(child.cmdline())]

    def now(self) -> list[dict[str, float]]:
        return [
            {**memory(process), "peak_private": self._peaks[process.pid], "cpu_s": sum(process.cpu_times()[:2])}
            for process in self.processes()
        ]

    def _run(self) -> None:
        while not self._done.wait(1 / _SAMPLES_PER_S):
            for process in self.processes():
                self._peaks[process.pid] = max(self._peaks.get(process.pid, 0), memory(process)["private"])


def memory(process: psutil.Process) -> dict[str, float]:
    found = process.memory_full_info()
    return {"private": found.uss / 1e6, "proportional": found.pss / 1e6}


def start(model: str, dtype: str, ranks: int, folder: str | None) -> dict[str, Any]:
    """In this process, which has loaded nothing yet."""
    with Sampled(ranks) as sampled:
        began = time.perf_counter()
        with LLM(model, dtype=dtype, data_parallel_size=ranks, weight_cache_dir=folder, kv_cache_memory_bytes=64 << 20):
            took = time.perf_counter() - began
            time.sleep(3 / _SAMPLES_PER_S)
            return {"seconds": took, "ranks": sampled.now()}


def started(model: str, dtype: str, ranks: int, folder: str | None) -> dict[str, Any]:
    """In a process of its own."""
    asked = json.dumps([model, dtype, ranks, folder])
    done = subprocess.run([sys.executable, __file__, "--start", asked], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def starts(model: str, dtype: str, ranks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        found = {
            "without": started(model, dtype, ranks, None),
            "first": started(model, dtype, ranks, folder),
            "again": started(model, dtype, ranks, folder),
        }
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.packed"))
    return {"packed_mb": size / 1e6, **found}


def rounds(path: Path, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Milliseconds of a round of one row, medians."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        cache = WeightCache(Path(folder), _ROOM, Checkpoint(path))
        arms = {}
        for name, own in (("private", None), ("mapped", cache)):
            loaded = Loaded(path, threads=torch.get_num_threads(), longest=CONTEXT, dtype=dtype, cache=own)
            run = loaded.round(1, CONTEXT, 0)
            arms[name] = lambda run=run: seconds(run)
        interleaved(arms, 3)
        return {name: 1000 * median(took) for name, took in interleaved(arms, repeats).items()}


def show(ranks: int, found: dict[str, Any]) -> None:
    print(f"{ranks} rank{'s' * (ranks > 1)}, {found['packed_mb']:.0f} MB of packed weights")
    for name in ("without", "first", "again"):
        each = found[name]["ranks"]
        print(
            f"  {name:8} {found[name]['seconds']:6.1f} s, processor {sum(one['cpu_s'] for one in each):6.1f} s;"
            f" private {sum(one['private'] for one in each):6.0f} MB,"
            f" peak {sum(one['peak_private'] for one in each):6.0f}, in all {sum(o['proportional'] for o in each):6.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--ranks", type=numbers, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(*json.loads(args.start))))
        return
    path = resolve_model(args.model)
    figures: dict[str, Any] = {"starts": {}}
    for ranks in args.ranks:
        figures["starts"][str(ranks)] = starts(str(path), args.dtype, ranks)
        show(ranks, figures["starts"][str(ranks)])
    figures["round_ms"] = rounds(path, getattr(torch, args.dtype), args.repeats)
    print("a round of one row, ms:", {name: round(took, 3) for name, took in figures["round_ms"].items()})
    command = f"benchmarks/engine/start_time.py --model {path.name} --dtype {args.dtype}"
    print("written to", save(f"loading-{path.name}", command, figures))


if __name__ == "__main__":
    main()
