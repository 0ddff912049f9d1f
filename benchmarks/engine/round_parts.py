"""A profile of a round on this machine: what each part of the compiled path takes, and what the engine around it does.

    python benchmarks/engine/round_parts.py [--model scout] [--dtype float32] [--contexts 128,2048] [--repeats 60]

The first table is a round's parts, for 1 and 4 rows of one sequence: each is the difference between rounds with and
without it (kernels/model_parts.py); beside their sum stands the round as measured in one piece. The second is an
engine's, over a real run of a batch with speculation off and auto: its own clock by part, with the compiled calls
inside them timed as they are made. There "rest" is what no part has: the inbox, the handing out of tokens, waiting for
a thread.
"""

import argparse
import itertools
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers, words
from benchmarks.common.prompts import prompts, windows
from benchmarks.common.repeats import interleaved, median, seconds
from benchmarks.common.results import counted, save
from benchmarks.common.timed_batches import BatchLLM
from benchmarks.kernels.model_parts import Loaded
from outrider import SamplingParams
from outrider.kernels.cpu.context import Context
from outrider.workers.config import resolve_model
from outrider.workers.engine.round_timer import RoundTimer
from outrider.workers.loading.model import useful_threads
from outrider.workers.types.model.model_config import ModelConfig

ROWS = (1, 4)
SHORTEST = 16  # tokens of context: so few that reading the cache takes next to nothing
PROMPT_TOKENS = 32
CALLS = {"stage": "forward", "sample": "forward", "draft": "draft"}  # compiled calls, and the engine's part they are in
VARIANTS = ("nothing", "attention", "dense", "layers")  # of a stage, each with what the one before it has
Parts = dict[str, float]


def round_parts(loaded: Loaded, contexts: list[int], repeats: int) -> dict[str, dict[str, Any]]:
    """Microseconds by part, and measured as one, of a round of `rows` rows by "ROWS rows, context TOKENS"."""
    variants = (loaded.first_layers(0), loaded.attention_alone(), loaded.without_routing(), loaded.stage)
    arms: dict[tuple[str, int, int], Callable[[], object]] = {}
    for rows, context in itertools.product(ROWS, (SHORTEST, *contexts)):
        for name, variant in zip(VARIANTS, variants, strict=True):
            if context == SHORTEST or name == "attention":
                arms[name, rows, context] = loaded.layers(variant, rows, context)
        arms["round", rows, context] = loaded.round(rows, context, 0.8)
    timed = {arm: partial(seconds, call) for arm, call in arms.items()}
    interleaved(timed, 3)
    took = {arm: 1e6 * median(values) for arm, values in interleaved(timed, repeats).items()}
    figures = {}
    for rows, context in itertools.product(ROWS, contexts):
        short = {name: took[name, rows, SHORTEST] for name in (*VARIANTS, "round")}
        over_cache = took["attention", rows, context] - short["attention"]
        figures[f"{counted(rows, 'row')}, context {context}"] = {
            "us": stage_parts(short, over_cache),
            "measured_us": took["round", rows, context],
        }
    return figures


def stage_parts(short: Parts, over_cache: float) -> Parts:
    """What each variant of a round after a short context adds to the one before it; the cache's share by itself.

    Nothing but attention over the cache depends on the context.
    """
    return {
        "embedding, norm, call": short["nothing"],
        "attention's products": short["attention"] - short["nothing"],
        "attention over the cache": over_cache,
        "dense layers, shared experts": short["dense"] - short["attention"],
        "router, routed experts": short["layers"] - short["dense"],
        "head, draw": short["round"] - short["layers"],
    }


@contextmanager
def stopwatch() -> Iterator[Parts]:
    """Seconds spent in compiled calls by name, of every engine of this process, while it is open."""
    spent: Parts = defaultdict(float)
    own = {name: getattr(Context, name) for name in CALLS}

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            result = own[name](*args)
            spent[name] += time.perf_counter() - began
            return result

        return call

    try:
        for name in CALLS:
            setattr(Context, name, timed(name))
        yield spent
    finally:
        for name, call in own.items():
            setattr(Context, name, call)


class EngineProfile:
    """Where an engine's time goes while it decodes a batch, the prompts left out."""

    def __init__(self, llm: BatchLLM, spent: Parts) -> None:
        self._times: Callable[[], RoundTimer] = lambda: llm._host.engine.times  # type: ignore[attr-defined]  # one rank
        self._llm, self._spent = llm, spent
        self._before: tuple[int, Parts, Parts] = (0, {}, {})

    def run(self, batch: list[list[int]], params: SamplingParams) -> dict[str, Any]:
        """Microseconds a round by part, and what a round brought."""
        decoded = self._llm.decode(batch, params, on_first=self._mark)
        rounds, parts, calls = self._before
        times = self._times()
        count = times.rounds - rounds
        by_part = {name: took - parts.get(name, 0.0) for name, took in times.by_part.items()}
        compiled = {name: took - calls.get(name, 0.0) for name, took in self._spent.items()}
        us = {name: 1e6 * took / count for name, took in engine_parts(by_part, compiled, decoded.rest_s).items()}
        return {"us": us, "rounds": count, "tokens_per_round": decoded.tokens / count}

    def _mark(self) -> None:
        times = self._times()
        self._before = times.rounds, dict(times.by_part), dict(self._spent)


def engine_parts(by_part: Parts, compiled: Parts, whole: float) -> Parts:
    """The engine's parts with the compiled calls inside them apart, and what is left of the whole."""
    parts = dict(by_part)
    for name, took in compiled.items():
        parts[CALLS[name]] -= took
    parts |= {f"compiled: {name}": took for name, took in compiled.items()}
    return parts | {"rest": whole - sum(by_part.values())}


def engine(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """An engine's profile by "SPECULATION, batch BATCH": medians over the repeats, which take turns."""
    settings = {"dtype": args.dtype, "quantization": args.quantization, "enable_prefix_caching": False}
    figures = {}
    with stopwatch() as spent, BatchLLM(args.model, **settings) as llm:
        if llm.tokenizer is None:
            sys.exit(f"{args.model} has no tokenizer to make prompts with")
        texts = [llm.tokenizer.encode(text) for text in prompts("code", 1000)]
        profile = EngineProfile(llm, spent)
        cases = list(itertools.product(args.speculation, args.batch))
        runs: dict[tuple[str, int], list[dict[str, Any]]] = {case: [] for case in cases}
        for _ in range(args.runs + 1):
            for speculation, batch in cases:
                params = SamplingParams(
                    temperature=0.8, max_tokens=args.tokens, ignore_eos=True, seed=1,
                    speculation=int(speculation) if speculation.isdigit() else speculation,
                )  # fmt: skip
                chosen = windows(texts, PROMPT_TOKENS, batch)[0]
                runs[speculation, batch].append(profile.run(chosen, params))
        for (speculation, batch), listed in runs.items():
            figures[f"{speculation}, batch {batch}"] = _medians(listed[1:])
    return figures


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for run in runs for name in run["us"])
    us = {name: median([run["us"].get(name, 0.0) for run in runs]) for name in names}
    return {"us": us} | {key: median([run[key] for run in runs]) for key in ("rounds", "tokens_per_round")}


def show(name: str, parts: Parts) -> None:
    whole = sum(parts.values())
    print(f"{name}: {whole:.0f} us")
    for part, took in parts.items():
        print(f"  {part:<30} {took:8.1f} us  {took / whole:4.0%}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--quantization", choices=["int8"])
    parser.add_argument("--contexts", type=numbers, default=[128, 2048], help="tokens before a round")
    parser.add_argument("--repeats", type=int, default=60, help="of every round")
    parser.add_argument("--speculation", type=words, default=["off", "auto"])
    parser.add_argument("--batch", type=numbers, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=192, help="of output, in the engine's run")
    parser.add_argument("--runs", type=int, default=5, help="of the engine, for each batch and speculation")
    parser.add_argument("--name", help="of the file of results (round-MODEL-DTYPE)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    path = resolve_model(args.model)
    threads = useful_threads(ModelConfig.load(path).hidden_size, torch.get_num_threads())
    loaded = Loaded(
        path,
        threads=threads,
        longest=max(args.contexts),
        dtype=getattr(torch, args.dtype),
        quantization=args.quantization,
    )
    rounds = round_parts(loaded, args.contexts, args.repeats)
    for name, each in rounds.items():
        show(f"{name} (measured in one piece {each['measured_us']:.0f} us)", each["us"])
    del loaded
    engines = engine(args)
    for name, figures in engines.items():
        show(f"{name}, {figures['tokens_per_round']:.2f} tokens a round", figures["us"])
    record = {"threads": threads, "rounds": rounds, "engine": engines}
    name = args.name or f"round-{path.name}-{args.quantization or args.dtype}"
    print("written to", save(name, f"benchmarks/engine/round_parts.py {shlex.join(sys.argv[1:])}".strip(), record))


if __name__ == "__main__":
    main()
