"""A kind of text at a constant batch size, all depths in turn. Part of auto_against_depths.py."""

import argparse
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import mean
from typing import Any

from benchmarks.common.repeats import interleaved, median, paired
from benchmarks.common.timed_batches import Decoded, acceptance_per_position
from benchmarks.speculation.depth_arms import SEED, Engines, against, params, statics, verdict
from benchmarks.speculation.record_rounds import TEXTS, Text

_SEQUENCES, _LEAST_TURNS = 16, 8  # of a cell's repeat


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


def run_constant_loads(args: argparse.Namespace, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """Every repeat has engines of its own: where an engine's memory happens to lie is worth some percent for life.

    `keep` hears the figures after each: a repeat takes a quarter of an hour.
    """
    of = [Cell(text, batch, args) for text, batch in itertools.product(chosen_texts(args), args.batch)]
    for repeat in range(args.repeats):
        with ExitStack() as stack:
            engines = Engines(args, stack)
            for each in of:
                each.run(engines)
        print(f"{repeat + 1} of {args.repeats}: {', '.join(verdict(each.figures()) for each in of)}", flush=True)
        keep([each.figures() for each in of])


def chosen_texts(args: argparse.Namespace) -> list[Text]:
    sampled = {"code", "prose"} if not args.greedy else set()
    return [text for text in TEXTS if text.kind in args.kinds and not (text.kind in sampled and not text.temperature)]


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
    fixed = list(statics(rates))
    if "auto" not in rates or not fixed:
        return None
    everything, over = range(len(rates["auto"])), []
    for first in everything[::turns]:
        told = everything[first : first + turns]
        tells = [turn for turn in everything if turn not in told] or told
        speeds = paired({arm: [rates[arm][turn] for turn in tells] for arm in fixed}, fixed[0])
        best = max(speeds, key=speeds.__getitem__)
        over.append(median([rates["auto"][turn] / rates[best][turn] for turn in told]))
    return mean(over)


def line(one: dict[str, Any]) -> str:
    speeds = ", ".join(f"{arm} {figures['tokens_per_second']:.0f}" for arm, figures in one["arms"].items())
    return f"{one['kind']}, T={one['temperature']:g}, batch {one['batch']}: {speeds}: {verdict(one)}"
