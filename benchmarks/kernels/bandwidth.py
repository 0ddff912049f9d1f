"""What this machine's memory can give: the fastest plain read of much more than its caches hold.

By a small compiled reader, and where there is no compiler by torch's sum, which is slower on some machines. The memory
is in huge pages where the system has them, as the kernels' weights are.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.repeats import interleaved, median, seconds
from outrider.kernels.cpu.packing import private_memory

SOURCE = Path(__file__).with_name("read_bandwidth.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
STREAMS = (1, 2, 4, 8)
LEAST_BYTES = 512 << 20
_ALIGNMENT = 64

Read = Callable[[], object]


def last_level_cache() -> int:
    """Bytes of the largest cache that this processor names; 32 MiB if it names none."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=32 << 20)


def read_bandwidth(threads: int, repeats: int) -> dict[str, Any]:
    """GB/s of the fastest way of reading, and every way's median."""
    size = max(LEAST_BYTES, 16 * last_level_cache()) // _ALIGNMENT * _ALIGNMENT
    words = np.frombuffer(private_memory(size + _ALIGNMENT), dtype=np.uint64)
    words = words[-words.ctypes.data % _ALIGNMENT // 8 :][: size // 8]
    words.fill(1)
    reader = compiled_reader()
    if reader is None:
        arms = {"torch": _torch_read(words, threads)}
    else:
        lines = size // _ALIGNMENT
        arms = {f"{s} streams": partial(reader, words.ctypes.data, lines, threads, s) for s in STREAMS}
    timed = {name: partial(seconds, read) for name, read in arms.items()}
    interleaved(timed, 1)
    rates = {name: size / median(took) / 1e9 for name, took in interleaved(timed, repeats).items()}
    return {"gb_per_s": max(rates.values()), "by_reader": rates, "bytes": size}


def compiled_reader() -> Callable[..., int] | None:
    """read_lines of read_bandwidth.cpp; None where it cannot be compiled."""
    asked = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [asked] if asked else ["c++", "g++", "clang++"])), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "read_bandwidth.so"
        done = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(library)], capture_output=True, check=False)
        if done.returncode:
            return None
        read: Any = ctypes.CDLL(str(library)).read_lines  # stays loaded when the file is gone
    read.restype = ctypes.c_uint64
    read.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int)
    return read  # type: ignore[no-any-return]


def _torch_read(words: np.ndarray[Any, Any], threads: int) -> Read:
    values = torch.from_numpy(words.view(np.float32))

    def read() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        values.sum()
        torch.set_num_threads(before)

    return read
