"""A machine without a C++ compiler serves all the same, in PyTorch, and is told once what would help."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "src"


def without_a_compiler(code: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    """Runs `code` in a process of its own, with nothing cached."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "XDG_CACHE_HOME": str(cache), "CXX": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
    )


ASK = """
import logging, sys
import torch
from outrider.workers.config import EngineConfig
from outrider.workers.types.errors import OutriderError
from outrider.workers.loading.kernel_choice import resolve_kernels
logging.basicConfig(format="%(levelname)s %(message)s")
for kernels in ("auto", "compiled", "torch"):
    for quantization in (None, "int8"):
        config = EngineConfig(kernels=kernels, quantization=quantization)
        try: print(kernels, quantization, resolve_kernels(config, torch.device("cpu"), torch.float32, None))
        except OutriderError as error: print(kernels, quantization, "refused:", error)
"""


def test_without_a_compiler_auto_takes_torchs_path_with_one_warning_that_names_the_cure(tmp_path: Path) -> None:
    """And where that will not do, there is an error of one line."""
    why = "no C++ compiler here (looked for CXX=/nonexistent): install g++"

    done = without_a_compiler(ASK, tmp_path)

    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert warning.startswith("WARNING")
    assert why in warning
    auto, quantized, compiled, _, torchs, _ = done.stdout.splitlines()
    assert (auto, torchs) == ("auto None torch", "torch None torch")
    assert quantized.startswith('auto int8 refused: quantization="int8" needs the compiled kernels')
    assert compiled.startswith('compiled None refused: kernels="compiled" is not available')
    assert why in quantized
    assert why in compiled


def test_an_llm_without_a_compiler_serves_and_one_that_must_have_them_says_why(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from outrider import LLM, OutriderError, SamplingParams\n"
        "params = SamplingParams(temperature=0, max_tokens=3)\n"
        "with LLM('scout', kv_cache_memory_bytes=64 << 20) as llm:\n"
        "    print(len(llm.generate('import os', params)[0].outputs[0].token_ids))\n"
        "try: LLM('scout', kernels='compiled', kv_cache_memory_bytes=64 << 20)\n"
        "except OutriderError as error: print(error)\n"
    )

    done = without_a_compiler(code, tmp_path)

    assert done.returncode == 0, done.stderr
    count, refusal = done.stdout.splitlines()
    assert count == "3"
    assert refusal.startswith('kernels="compiled" is not available: no C++ compiler here')
    assert done.stderr.count("no compiled kernels") == 1
    assert "install g++" in done.stderr
