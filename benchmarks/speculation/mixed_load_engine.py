"""One engine of benchmarks/mixed_load.py: an LLM for the whole life of the process, one wave of requests after another.

    .venv/bin/python mixed_load_engine.py MODEL SPECULATION

It speaks the line protocol of peers/protocol.py:

    in:   {"waves": [[prompt token ids, ...], ...], "temperature": T, "max_tokens": N, "seed": first seed}
    out:  {"seconds": s, "tokens": [token ids of each request], "rounds": n, "drafted": n, "rss_mb": n}
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.peers import protocol
from outrider import LLM, SamplingParams, __version__


def run(llm: LLM, request: dict[str, Any]) -> dict[str, Any]:
    """The end of a sequence does not end it, so every engine makes the same number of tokens."""
    shared = {"temperature": request["temperature"], "max_tokens": request["max_tokens"], "ignore_eos": True}
    waves, seed = [], request["seed"]
    for prompts in request["waves"]:
        waves.append((prompts, [SamplingParams(**shared, seed=seed + number) for number in range(len(prompts))]))
        seed += len(prompts)
    began = time.perf_counter()
    results = [result for prompts, params in waves for result in llm.generate(prompts, params)]
    seconds = time.perf_counter() - began
    outputs = [result.outputs[0] for result in results]
    speculations = [output.speculation for output in outputs if output.speculation is not None]
    return {
        "seconds": seconds,
        "tokens": [output.token_ids for output in outputs],
        "rounds": sum(one.rounds for one in speculations),
        "drafted": sum(one.drafted for one in speculations),
        "rss_mb": psutil.Process().memory_info().rss / 2**20,
    }


def main() -> None:
    model, speculation = sys.argv[1:]
    answers = protocol.claim_stdout()
    depth = int(speculation) if speculation.isdigit() else speculation
    # Without a prefix cache, since cycles and repeated runs send the same prompts again.
    with LLM(model, speculation=depth, enable_prefix_caching=False) as llm:
        llm.generate("def", SamplingParams(temperature=0, max_tokens=32, ignore_eos=True))
        protocol.answer_each(answers, f"outrider {__version__}", partial(run, llm))


if __name__ == "__main__":
    main()
