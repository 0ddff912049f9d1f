"""Speculation on this machine: depths side by side on every kind of text, over a day of load, and what deciding takes.

    .venv/bin/python benchmarks/speculation.py [--model scout] [--only cells,replay,decisions] [--batch 1,4,16]

*cells*: tokens a second and acceptance by position, by kind of text, temperature, batch and depth (off, 1..5, auto),
the arms in turn, with new engines in every repeat; auto against the best static depth, as the other repeats name it and
as the same turns do, which favours chance, and against off, turn by turn: a turn of four sequences tells little more
than one of a single one, so larger batches have many too. A second is a sequence's own, from the batch's first tokens
to its last: sequences that draft by worth end apart. *replay*: a day of load in a minute, requests that arrive by
chance at a rate that rises and falls, static depths and auto side by side, hour by hour in turn; what counts is the
tokens of a second in which anything ran.
*decisions*: microseconds of a round's decision.

Texts are held out, "chat" goes through the chat template, "repetitive" repeats a few lines, and "adversarial" is made
of tokens by chance at T=2. Sequences do not end at their end of sequence.
"""

import argparse
import itertools
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any

import torch
from common import interleaved, median, numbers, paired, save, words
from decisions import deciding_us, decision_us
from generation import BatchLLM, Decoded, acceptance_per_position
from record import TEXTS, Text, kind_prompts

from outrider import SamplingParams
from outrider.cluster.bench import arrivals
from outrider.workers.config import resolve_model
from outrider.workers.engine.request import SequenceChunk

ARMS = ("off", "1", "2", "3", "4", "5", "auto")
BATCHES = [1, 4, 16]
HOURS = 6
SEED = 1
_SEQUENCES, _LEAST_TURNS = 16, 8  # of a cell's repeat


class Engines:
    """One of each arm's own: one that runs five arms in turn has its weights in the caches, and auto learns alone."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        settings = {"dtype": args.dtype, "max_num_seqs": max(32, *args.batch), "enable_prefix_caching": False}
        self._own = {
            arm: stack.enter_context(BatchLLM(args.model, speculation="off" if arm == "off" else "auto", **settings))
            for arm in args.speculation
        }
        self._any = next(iter(self._own.values()))
        if self._any.tokenizer is None:
            sys.exit(f"{args.model} has no tokenizer to make prompts with")

    def of(self, arm: str) -> BatchLLM:
        return self._own[arm]

    def prompts(self, kind: str, count: int) -> list[list[int]]:
        assert self._any.tokenizer is not None
        return kind_prompts(kind, self._any.tokenizer, self._any._host.engine.info.vocab_size, count)


def params(arm: str, temperature: float, tokens: int, seed: int) -> SamplingParams:
    speculation = int(arm) if arm.isdigit() else arm
    return SamplingParams(
        temperature=temperature, max_tokens=tokens, ignore_eos=True, seed=seed, speculation=speculation
    )


# Cells ---------------------------------------------------------------------------------------------------------------


class Cell:
    """All arms on one kind of text at one batch, in turn; every turn has prompts and seeds of its own."""

    def __init__(self, text: Text, batch: int, args: argparse.Namespace) -> None:
        self._text, self._batch, self._args = text, batch, args
        self._turns = max(_SEQUENCES // batch, _LEAST_TURNS)
        self._decoded: dict[str, list[Decoded]] = {arm: [] for arm in args.speculation}
        self._rates: dict[str, list[float]] = {arm: [] for arm in args.speculation}

    def run(self, engines: Engines) -> None:
        """A repeat, after a turn that does not count."""
        chosen = engines.prompts(self._text.kind, max(self._batch, 12))
        first = len(self._rates[self._args.speculation[0]])
        numbers = {arm: itertools.count(first) for arm in self._rates}
        decoded: dict[str, list[Decoded]] = {arm: [] for arm in self._rates}

        def turn(arm: str) -> float:
            number = next(numbers[arm])
            prompts = [chosen[(number * self._batch + n) % len(chosen)] for n in range(self._batch)]
            seeds = range(SEED + number * self._batch, SEED + (number + 1) * self._batch)
            each = [params(arm, self._text.temperature, self._args.tokens, seed) for seed in seeds]
            decoded[arm].append(engines.of(arm).decode(prompts, each))
            return self._batch * decoded[arm][-1].tokens_per_second_each

        rates = interleaved({arm: partial(turn, arm) for arm in self._rates}, 1 + self._turns)
        for arm in self._rates:
            self._rates[arm] += rates[arm][1:]
            self._decoded[arm] += decoded[arm][1:]

    def figures(self) -> dict[str, Any]:
        rates = self._rates
        figures = {arm: arm_figures(self._decoded[arm], rates[arm]) for arm in rates}
        found = against(paired(rates, "off" if "off" in rates else next(iter(rates))))
        found["auto_over_luckiest"], found["auto_over_best"] = found["auto_over_best"], over_best(rates, self._turns)
        told = {"kind": self._text.kind, "temperature": self._text.temperature, "batch": self._batch}
        return {**told, "arms": figures, **found}


def cells(args: argparse.Namespace, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """Every repeat has engines of its own: where an engine's memory happens to lie is worth some percent for life.

    `keep` hears the figures after each: a repeat takes ten minutes.
    """
    of = [Cell(text, batch, args) for text, batch in itertools.product(chosen_texts(args), args.batch)]
    for repeat in range(args.repeats):
        with ExitStack() as stack:
            engines = Engines(args, stack)
            for each in of:
                each.run(engines)
        print(f"{repeat + 1} of {args.repeats}: {', '.join(verdict(each.figures()) for each in of)}", flush=True)
        keep([each.figures() for each in of])


def arm_figures(decoded: Sequence[Decoded], rates: list[float]) -> dict[str, Any]:
    return {
        "tokens_per_second": median(rates),
        "whole_batch_per_second": median([one.tokens_per_second for one in decoded]),
        "all": rates,
        "mean_depth": sum(one.drafted for one in decoded) / sum(one.rounds for one in decoded),
        "acceptance_per_position": acceptance_per_position(decoded),
    }


def over_best(rates: dict[str, list[float]], turns: int = 1) -> float | None:
    """Auto over the best static depth; None where an arm is missing. `turns`: of every repeat.

    Which depth is best the other repeats say, and by how much a repeat's own turns: of six that are alike one is always
    ahead by chance, and so is one of six engines. The mean over repeats. (Over the luckiest: "auto_over_luckiest".)
    """
    statics = [arm for arm in rates if arm != "auto"]
    if "auto" not in rates or not statics:
        return None
    everything, over = range(len(rates["auto"])), []
    for first in everything[::turns]:
        told = everything[first : first + turns]
        tells = [turn for turn in everything if turn not in told] or told
        speeds = paired({arm: [rates[arm][turn] for turn in tells] for arm in statics}, statics[0])
        best = max(speeds, key=speeds.__getitem__)
        over.append(median([rates["auto"][turn] / rates[best][turn] for turn in told]))
    return mean(over)


def against(arms: dict[str, float]) -> dict[str, Any]:
    """Auto over the best static depth (off among them), and over off; None where an arm is missing."""
    speeds = dict(arms)
    auto = speeds.pop("auto", None)
    if auto is None or not speeds:
        return {"best_static": None, "auto_over_best": None, "auto_over_off": None}
    best = max(speeds, key=speeds.__getitem__)
    over_off = auto / speeds["off"] if "off" in speeds else None
    return {"best_static": best, "auto_over_best": auto / speeds[best], "auto_over_off": over_off}


# A day of load -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Busy:
    """Tokens, and the seconds in which at least one request ran. Its methods may be called from any thread."""

    clock: Callable[[], float] = time.perf_counter
    tokens: int = 0
    seconds: float = 0.0
    error: str = ""
    _live: int = 0
    _since: float = 0.0
    _idle: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        with self._lock:
            if not self._live:
                self._since = self.clock()
                self._idle.clear()
            self._live += 1

    def __call__(self, chunks: Sequence[SequenceChunk]) -> None:
        """What an engine delivers."""
        with self._lock:
            for chunk in chunks:
                self.error = chunk.error or self.error
                self.tokens += len(chunk.token_ids)
                self._live -= chunk.finish_reason is not None
            if not self._live or self.error:
                self.seconds += self.clock() - self._since
                self._idle.set()

    def wait(self, timeout_s: float) -> None:
        if not self._idle.wait(timeout_s):
            raise RuntimeError(f"requests have not ended after {timeout_s:.0f} s")
        if self.error:
            raise RuntimeError(self.error)


def hourly_rates(peak: float, hours: int) -> list[float]:
    """Requests a second by hour: from a tenth of the peak up to it and down again."""
    return [peak * (0.1 + 0.9 * math.sin(math.pi * (hour + 0.5) / hours) ** 2) for hour in range(hours)]


def replay(engines: Engines, args: argparse.Namespace) -> dict[str, Any]:
    """Every hour with each arm in turn, on the same arrivals, prompts and seeds."""
    kinds = [text for text in TEXTS if text.temperature == 0.8]
    texts = [(text, prompt) for text in kinds for prompt in engines.prompts(text.kind, 12)]
    rates = hourly_rates(args.peak, args.hours)
    totals = {arm: [0, 0.0] for arm in args.speculation}
    hours = []
    for hour, rate in enumerate(rates):
        figures = {}
        for arm in args.speculation:
            busy = one_hour(engines.of(arm), texts, arm, arrivals(rate, args.hour_s, SEED + hour), args, hour)
            figures[arm] = busy.tokens / busy.seconds if busy.seconds else None
            totals[arm][0] += busy.tokens
            totals[arm][1] += busy.seconds
        hours.append({"rate": rate, "tokens_per_busy_second": figures})
        print(f"hour {hour}, {rate:.1f} requests/s: {_listed(figures)}", flush=True)
    speeds = {arm: {"tokens_per_second": tokens / took} for arm, (tokens, took) in totals.items()}
    rates = {arm: figures["tokens_per_second"] for arm, figures in speeds.items()}
    return {"hour_s": args.hour_s, "hours": hours, "arms": speeds, **against(rates)}


def one_hour(
    llm: BatchLLM,
    texts: Sequence[tuple[Text, list[int]]],
    arm: str,
    due: Sequence[float],
    args: argparse.Namespace,
    hour: int,
) -> Busy:
    busy, began = Busy(), time.perf_counter()
    for number, at in enumerate(due):
        time.sleep(max(0.0, began + at - time.perf_counter()))
        text, prompt = texts[(37 * hour + 5 * number) % len(texts)]
        own = params(arm, text.temperature, args.tokens, SEED + 1000 * hour + number)
        (request,) = llm._requests([prompt], own)
        busy.begin()
        llm._host.engine.submit(request, busy)
    if due:
        busy.wait(600.0)
    return busy


def _listed(figures: dict[str, float | None]) -> str:
    return ", ".join(f"{arm} {value:.0f}" if value else f"{arm} -" for arm, value in figures.items())


# Decisions -----------------------------------------------------------------------------------------------------------


def decisions() -> dict[str, dict[str, float]]:
    return {str(sequences): decision_us(sequences) for sequences in (1, 4, 16, 64)}


# -------------------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", type=words, default=["decisions", "cells", "replay"])
    parser.add_argument("--kinds", type=words, default=["code", "prose", "repetitive", "adversarial"])
    parser.add_argument("--batch", type=numbers, default=BATCHES)
    parser.add_argument("--speculation", type=words, default=list(ARMS))
    parser.add_argument("--greedy", action="store_true", help="code and prose at T=0 too")
    parser.add_argument("--tokens", type=int, default=96, help="of output, of each request")
    parser.add_argument("--repeats", type=int, default=5, help="with engines of their own, of some turns each")
    parser.add_argument("--peak", type=float, default=12.0, help="requests a second at the day's peak")
    parser.add_argument("--hours", type=int, default=HOURS)
    parser.add_argument("--hour-s", type=float, default=5.0, help="seconds that an hour of the replayed day takes")
    parser.add_argument("--name", help="of the file of results (speculation-MODEL)")
    return parser.parse_args()


def chosen_texts(args: argparse.Namespace) -> list[Text]:
    sampled = {"code", "prose"} if not args.greedy else set()
    return [text for text in TEXTS if text.kind in args.kinds and not (text.kind in sampled and not text.temperature)]


def main() -> None:
    args = arguments()
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "tokens": args.tokens}
    name = args.name or f"speculation-{resolve_model(args.model).name}"
    command = f"benchmarks/speculation.py {shlex.join(sys.argv[1:])}".strip()
    if "decisions" in args.only:
        figures["decision_us"] = decisions()
        for sequences, parts in figures["decision_us"].items():
            told = ", ".join(f"{part} {us:.0f} us" for part, us in parts.items())
            all_us = sum(parts.values())
            print(f"for {sequences}: {told}; deciding {deciding_us(parts):.0f} us, with learning {all_us:.0f} us")
    if "cells" in args.only:

        def keep(found: list[dict[str, Any]]) -> None:
            figures["cells"] = found
            save(name, command, figures)

        cells(args, keep)
        print(*map(line, figures["cells"]), sep="\n", flush=True)
    if "replay" in args.only:
        with ExitStack() as stack:
            figures["replay"] = replay(Engines(args, stack), args)
        print(f"the day: {verdict(figures['replay'])}")
    print("written to", save(name, command, figures))


def line(one: dict[str, Any]) -> str:
    speeds = ", ".join(f"{arm} {figures['tokens_per_second']:.0f}" for arm, figures in one["arms"].items())
    return f"{one['kind']}, T={one['temperature']:g}, batch {one['batch']}: {speeds}: {verdict(one)}"


def verdict(one: dict[str, Any]) -> str:
    if one["auto_over_best"] is None:
        return "no comparison"
    over_off = f", {one['auto_over_off']:.2f} of off" if one["auto_over_off"] is not None else ""
    here = f": {one['auto_over_luckiest']:.2f} in these turns" if "auto_over_luckiest" in one else ""
    return f"auto {one['auto_over_best']:.2f} of the best static depth ({one['best_static']}{here}){over_off}"


if __name__ == "__main__":
    main()
