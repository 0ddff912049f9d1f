"""What the kernels compute on each instruction set: AVX2 and AVX-512 the same bits, the plain path the same numbers.

Kernels for another instruction set than this machine's best are built when this runs first.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_config, write_checkpoint

from outrider.kernels.cpu.build import instruction_set

KNOWN = ("plain", "avx2", "avx512")
TESTS = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("every_kernel.py")

Results = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    """Of an instruction set: everything that every_kernel.py computes on it. Skips if this processor lacks it."""
    folder = tmp_path_factory.mktemp("results")
    config = random_config(6, num_hidden_layers=2, max_position_embeddings=700, vocab_size=97, rope_scaling=None)
    write_checkpoint(folder / "model", config, seed=6)
    best = KNOWN.index(instruction_set())

    def run(isa: str) -> Results:
        if KNOWN.index(isa) > best:
            pytest.skip(f"this processor has no {isa}")
        out = folder / f"{isa}.npz"
        if not out.exists():
            environment = {
                **os.environ,
                "OUTRIDER_CPU_ISA": isa,
                "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]),
            }
            command = [sys.executable, str(SCRIPT), str(folder / "model"), str(out)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=220)
            assert done.returncode == 0, done.stderr
        with np.load(out) as found:
            return dict(found)

    return run


def test_avx2_and_avx512_agree_bit_for_bit(results: Callable[[str], Results]) -> None:
    wide, narrow = results("avx512"), results("avx2")

    assert wide.keys() == narrow.keys()
    for name, values in wide.items():
        assert np.array_equal(values.view(np.uint8), narrow[name].view(np.uint8)), name


@pytest.mark.full
def test_the_plain_path_agrees_within_rounding(results: Callable[[str], Results]) -> None:
    best, plain = results(instruction_set()), results("plain")

    for name, values in best.items():
        if values.dtype == np.float32 and "bf16" not in name:  # a cache in bf16 rounds either way at a tie
            errors = np.linalg.norm(plain[name] - values, axis=-1) / np.linalg.norm(values, axis=-1)
            assert errors.max() < 1e-4, name
        if name.startswith("tokens"):
            assert np.array_equal(plain[name], values), name


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("isa", ["plain", "avx2"])
def test_each_instruction_set_is_exact_with_itself(isa: str, results: Callable[[str], Results]) -> None:
    """The tests of bits, once more on it."""
    results(isa)  # skips where this processor lacks it
    files = ["kernels/cpu/test_linear.py", "parity/test_compiled_bits.py", "parity/test_compiled_module_bits.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(TESTS / file) for file in files)]

    done = subprocess.run(
        command, env={**os.environ, "OUTRIDER_CPU_ISA": isa}, cwd=TESTS.parent, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout[-3000:]
