"""Who can race, and how each is started: one command and environment per contestant, with the best settings found.

A contestant is written NAME or NAME:key=value,key=value, such as `llama.cpp:speculation=draft-mtp,threads=1`. `dtype`
and `threads` override the race's own; a key in capitals sets an environment variable; the rest depends on the peer and
is named beside its function below. Knows nothing of prompts or figures.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENVS = HERE / ".envs"


class CannotRaceError(RuntimeError):
    """A contestant cannot take part; the message says why in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a race asks of every contestant alike."""

    model: Path
    dtype: str
    threads: int
    max_prompts: int  # at once
    max_length: int  # tokens of one prompt and its output
    max_batch_tokens: int  # prompt tokens given at once


@dataclass(frozen=True, slots=True)
class Start:
    """How to start a contestant's runner."""

    command: list[str]
    env: dict[str, str]


def start(contestant: str, course: Course) -> Start:
    """CannotRaceError if it is not installed or cannot run this course; ValueError if its words are not understood."""
    name, _, listed = contestant.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, listed.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"contestant {contestant}: options are key=value, got {part!r}")
        options[key] = _value(value)
    if name not in STARTS:
        raise ValueError(f"contestant {contestant}: {name!r} is none of {', '.join(STARTS)}")
    env = {key: str(options.pop(key)) for key in list(options) if key.isupper()}
    dtype, threads = options.pop("dtype", course.dtype), options.pop("threads", course.threads)
    begun = STARTS[name](course, dtype, threads, options)
    return Start(begun.command, begun.env | env)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _python(name: str) -> Path:
    python = ENVS / name / "bin" / "python"
    if not python.exists():
        raise CannotRaceError(f"{name} is not installed: run {HERE.name}/install-{name}")
    return python


def _outrider(course: Course, dtype: str, threads: int, options: dict[str, Any]) -> Start:
    """Options: any argument of LLM."""
    weights = {"dtype": "bfloat16", "quantization": "int8"} if dtype == "int8" else {"dtype": dtype}
    settings = weights | {"max_num_seqs": course.max_prompts} | options
    command = [sys.executable, str(HERE / "outrider_runner.py"), str(course.model), json.dumps(settings)]
    return Start(command, {"OMP_NUM_THREADS": str(threads)})


def _transformers(course: Course, dtype: str, threads: int, options: dict[str, Any]) -> Start:
    """Options: any argument of from_pretrained."""
    if dtype == "int8":
        raise CannotRaceError("transformers has no 8-bit weights of its own on a CPU")
    settings = {"dtype": dtype} | options
    runner = [str(HERE / "transformers_runner.py"), str(course.model), json.dumps(settings), str(threads)]
    return Start([str(_python("transformers")), *runner], {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"})


def _vllm(course: Course, dtype: str, threads: int, options: dict[str, Any]) -> Start:
    """Options: speculation=METHOD (its own `mtp`) with depth=K, and any argument of vLLM's LLM."""
    if dtype == "int8":
        raise CannotRaceError("vLLM takes 8-bit weights only from a checkpoint that holds them")
    python = _python("vllm")
    settings: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": course.max_length,
        "max_num_seqs": course.max_prompts,
        "max_num_batched_tokens": max(course.max_batch_tokens, course.max_length),
    }
    method, depth = options.pop("speculation", "off"), options.pop("depth", 1)
    if method != "off":
        settings["speculative_config"] = {"method": method, "num_speculative_tokens": depth}
    preloads = [ENVS / "vllm" / "lib" / "libiomp5.so", Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the runner's own process: no messages between two
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(threads),  # else it takes one
        "KMP_BLOCKTIME": "5",  # ms that idle threads spin; its own choice where it starts the engine apart
        "LD_PRELOAD": ":".join(str(file) for file in preloads if file.exists()),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CACHE_ROOT": str(ENVS / "vllm" / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Start([str(python), str(HERE / "vllm_runner.py"), str(course.model), json.dumps(settings | options)], env)


def _llama_cpp(course: Course, dtype: str, threads: int, options: dict[str, Any]) -> Start:
    """Options: speculation=TYPE (its own --spec-type) with depth=K, and llama.cpp's long options (`batch-size=N`)."""
    runner = ENVS / "llama-cpp" / "llama-runner"
    if not runner.exists():
        raise CannotRaceError(f"llama.cpp is not installed: run {HERE.name}/install-llama-cpp")
    settings = {
        "model": gguf(course.model, dtype),
        "parallel": course.max_prompts,
        "ctx-size": course.max_prompts * course.max_length,
        "threads": threads,
        "flash-attn": "on",
    }
    kind, depth = options.pop("speculation", "off"), options.pop("depth", None)
    if kind != "off":
        settings["spec-type"] = kind
    if depth is not None:
        settings["spec-draft-n-max"] = depth
    arguments = [part for key, value in (settings | options).items() for part in (f"--{key}", str(value))]
    return Start([str(runner), "--no-kv-unified", *arguments], {})


STARTS: dict[str, Callable[[Course, str, int, dict[str, Any]], Start]] = {
    "outrider": _outrider,
    "transformers": _transformers,
    "vllm": _vllm,
    "llama.cpp": _llama_cpp,
}


def gguf(model: Path, dtype: str) -> Path:
    """The checkpoint in llama.cpp's format, converted once and kept until the checkpoint changes."""
    kinds = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}
    if dtype not in kinds:
        raise CannotRaceError(f"llama.cpp races with {', '.join(kinds)}, not with {dtype}")
    place = hashlib.sha256(str(model).encode()).hexdigest()[:8]
    path = ENVS / "llama-cpp" / "models" / f"{model.name}-{place}-{kinds[dtype]}.gguf"
    newest = max(file.stat().st_mtime for file in model.iterdir())
    if not path.exists() or path.stat().st_mtime < newest:
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        source = ENVS / "llama-cpp" / "source" / "vendor" / "llama.cpp"
        command = [_python("transformers"), HERE / "llama_convert.py", source, model]
        done = subprocess.run(
            [*command, "--outfile", part, "--outtype", kinds[dtype]], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CannotRaceError(f"llama.cpp's converter failed on {model}: {done.stderr.strip().splitlines()[-1]}")
        part.rename(path)
    return path
