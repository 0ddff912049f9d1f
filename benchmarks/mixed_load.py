"""Speculation under a load that keeps changing: engines of auto, off and fixed depths, compared cell by cell, by cycle.

    python benchmarks/mixed_load.py [--cycles 3] [--tokens 192] [--cells 'code:*'] [--json FILE]
    python benchmarks/mixed_load.py --arms auto,off --minutes 30     (soak)

Each arm is a process with one LLM that lives through all cells and cycles, so whatever speculation="auto" learns in one
cell it takes into the next. A cell is a kind of text, a temperature and a batch size, such as code:0.8:4. Batch size
and temperature change from each cell to the next. In a turn every arm runs the same prompts with the same seeds, one
arm at a time while the others wait, in an order that rotates from turn to turn; then once more in reverse order. A run
during which other processes took more than --others of the machine is discarded and repeated, at most twice; the least
disturbed one counts, and ratios of disturbed runs carry a *.

A ratio compares two arms in the same turn, in tokens a second of the whole runs, prefill included. The best fixed depth
of a cell is the one with the highest median over its cycles (with few cycles chance favours it). Decay is auto/off in
the last cycle over the first. All arms must make the same tokens in every cycle: the exit status is 1 if they do not.

The prompts, 40 to 300 tokens long, are code and docstrings of the installed numpy and torch packages, which are not in
scout's training corpus. Nothing was tuned on them: every other benchmark takes its prompts from that corpus.
"""

import argparse
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers, words
from benchmarks.common.results import record
from benchmarks.peers.contestants import ENVS, CannotRaceError, Start
from benchmarks.peers.runner import Runner
from benchmarks.speculation import package_prompts
from benchmarks.speculation.mixed_load_figures import (
    Cell,
    Turn,
    in_order,
    last_over_first,
    rows,
    rss_growth_mb,
    summary,
    summary_lines,
    table,
)
from outrider.workers.config import resolve_model
from outrider.workers.text.tokenizer import Tokenizer

ENGINE = Path(__file__).resolve().parent / "speculation" / "mixed_load_engine.py"
SETTLE_S = 0.3  # idle threads of the last engine may spin for up to 0.2 s
TRIES = 3  # of a run that others disturb
LEAST_REQUESTS = 4  # of a run, so that a batch of one takes about half a second too
PROMPTS = 64  # of each kind
STRIDE = 7  # cells of a kind start that many prompts apart


@dataclass(frozen=True, slots=True)
class Run:
    """The least disturbed of an arm's tries."""

    answer: dict[str, Any]
    others: float
    discarded: int


def run(engine: Runner, request: dict[str, Any], most_others: float, settle_s: float = SETTLE_S) -> Run:
    tries: list[tuple[float, dict[str, Any]]] = []
    while len(tries) < TRIES and not any(others <= most_others for others, _ in tries):
        time.sleep(settle_s)
        answer, others = engine.ask(request)
        tries.append((others, answer))
    others, answer = min(tries, key=lambda one: one[0])
    return Run(answer, others, len(tries) - 1)


@dataclass(slots=True, kw_only=True)
class Load:
    """Runs the turns. Remembers the first tokens of each cell, which every later run has to repeat."""

    engines: dict[str, Runner]
    requests: dict[Cell, dict[str, Any]]
    most_others: float
    passes: int
    settle_s: float = SETTLE_S
    _began: float = field(default_factory=time.monotonic)
    _tokens: dict[Cell, list[list[int]]] = field(default_factory=dict)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def turn(self, cell: Cell, cycle: int, first: int) -> Turn:
        """All arms on one cell, `passes` times, beginning with number `first`."""
        arms = list(self.engines)
        order = arms[first % len(arms) :] + arms[: first % len(arms)]
        runs: dict[str, list[Run]] = {arm: [] for arm in arms}
        for _ in range(self.passes):
            for arm in order:
                runs[arm].append(run(self.engines[arm], self.requests[cell], self.most_others, self.settle_s))
            order.reverse()  # so that a machine that slows down during a turn slows all arms alike
        every = [one for own in runs.values() for one in own]
        expected = self._tokens.setdefault(cell, every[0].answer["tokens"])
        generated = self.passes * sum(map(len, expected))
        return Turn(
            cell=cell,
            cycle=cycle,
            ended_s=self.elapsed_s,
            speeds={arm: generated / total(own, "seconds") for arm, own in runs.items()},
            noisy=[arm for arm, own in runs.items() if any(one.others > self.most_others for one in own)],
            discarded=sum(one.discarded for one in every),
            identical=all(one.answer["tokens"] == expected for one in every),
            drafts_per_round={arm: total(own, "drafted") / max(1, total(own, "rounds")) for arm, own in runs.items()},
            rss_mb={arm: own[-1].answer["rss_mb"] for arm, own in runs.items()},
        )

    def turns(self, cells: list[Cell], cycles: int, minutes: float) -> Iterator[Turn]:
        """`cycles` of them; with `minutes` as many as begin in that time, at least one whole cycle."""
        for number in itertools.count():
            cycle, place = 1 + number // len(cells), number % len(cells)
            if cycle > (1 if minutes else cycles) and self.elapsed_s >= 60 * minutes:
                return
            yield self.turn(cells[place], cycle, number)


def total(runs: list[Run], name: str) -> float:
    return sum(float(one.answer[name]) for one in runs)


def requests(cells: list[Cell], args: argparse.Namespace) -> dict[Cell, dict[str, Any]]:
    """What the arms are asked in each cell: the same in every cycle."""
    tokenizer = Tokenizer.load(resolve_model(args.model))
    if tokenizer is None:
        raise CannotRaceError(f"{args.model} has no tokenizer to make prompts with")
    kinds = sorted({cell.kind for cell in cells})
    texts = {kind: package_prompts.prompts(kind, PROMPTS, tokenizer.encode) for kind in kinds}
    asked = {}
    for number, cell in enumerate(cells):
        chosen = itertools.islice(itertools.cycle(texts[cell.kind]), number * STRIDE % PROMPTS, None)
        waves = args.repeats or -(-LEAST_REQUESTS // cell.batch)
        asked[cell] = {
            "waves": [list(itertools.islice(chosen, cell.batch)) for _ in range(waves)],
            "temperature": cell.temperature,
            "max_tokens": args.tokens,
            "seed": 10_000 * args.seed + 100 * number,
        }
    return asked


def chosen_cells(args: argparse.Namespace) -> list[Cell]:
    every = itertools.starmap(Cell, itertools.product(("code", "prose"), (0.0, 0.8), args.batch))
    return in_order((cell for cell in every if any(fnmatch(cell.name, one) for one in args.cells)), args.seed)


def start(arm: str, model: str, stack: ExitStack) -> Runner:
    command = [sys.executable, str(ENGINE), model, arm]
    return stack.enter_context(Runner(arm, Start(command, {}), ENVS / "logs" / f"mixed-load-{arm}.log"))


def figures(turns: list[Turn], args: argparse.Namespace) -> dict[str, Any]:
    found = rows(turns)
    return {
        "arms": args.arms,
        "prompts_from": package_prompts.versions(),
        "tokens": args.tokens,
        "passes": args.passes,
        "identical": all(turn.identical for turn in turns),
        "discarded_runs": sum(turn.discarded for turn in turns),
        "summary": summary(found, with_noisy=False),
        "summary_with_noisy": summary(found, with_noisy=True),
        "soak": {
            "minutes": turns[-1].ended_s / 60,
            "last_minute_over_first": {arm: last_over_first(turns, arm) for arm in args.arms},
            "rss_growth_mb": rss_growth_mb(turns),
        },
        "cells": found,
    }


def told(found: dict[str, Any], *, soak: bool) -> str:
    lines = [table(found["cells"]), "*: others disturbed one of the two runs in every try"]
    lines += summary_lines(found["summary"], "undisturbed ratios")
    if found["summary_with_noisy"] != found["summary"]:
        lines += summary_lines(found["summary_with_noisy"], "ratios with the disturbed ones")
    for arm, growth in found["soak"]["rss_growth_mb"].items() if soak else ():
        ratio = found["soak"]["last_minute_over_first"][arm]
        speed = "no cell undisturbed in both" if ratio is None else f"{ratio:.2f}"
        lines.append(f"{arm}: tokens/s in the last minute over the first: {speed}; RSS grew by {growth:.1f} MB")
    lines.append(
        f"tokens identical: {'yes' if found['identical'] else 'NO'}; discarded runs: {found['discarded_runs']}"
    )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--arms", type=words, default=["auto", "off", "1", "2", "3", "5"], help="auto and off always")
    parser.add_argument("--batch", type=numbers, default=[1, 4, 8, 16], help="batch sizes of the cells")
    parser.add_argument("--cells", type=words, default=["*"], metavar="PATTERN,...", help="such as code:0:1,prose:*")
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0, help="soak: as many cycles as fit, instead of --cycles")
    parser.add_argument("--tokens", type=int, default=192, help="output tokens of each request")
    parser.add_argument("--passes", type=int, default=2, help="runs of each arm in a turn")
    parser.add_argument(
        "--repeats", type=int, help=f"waves of requests in a run (default: as many as make {LEAST_REQUESTS} requests)"
    )
    parser.add_argument("--others", type=float, default=0.1, help="share of the machine that others may take of a run")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the cells and of the requests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all figures, again after each turn")
    args = parser.parse_args()
    if not {"auto", "off"} <= set(args.arms):
        parser.error("--arms must name auto and off: all ratios are auto's, and depths are compared through off")
    if not chosen_cells(args):
        parser.error(f"--cells {','.join(args.cells)} match no cell")
    return args


def main() -> int:
    args = arguments()
    cells = chosen_cells(args)
    command = f"benchmarks/mixed_load.py {shlex.join(sys.argv[1:])}".strip()
    done: list[Turn] = []
    with ExitStack() as stack:
        try:
            asked = requests(cells, args)
            load = Load(
                engines={arm: start(arm, args.model, stack) for arm in args.arms},
                requests=asked,
                most_others=args.others,
                passes=args.passes,
            )
            for turn in load.turns(cells, args.cycles, args.minutes):
                done.append(turn)
                print(progress(turn), file=sys.stderr, flush=True)
                if args.json:
                    args.json.write_text(json.dumps(record(command, figures(done, args)), indent=1) + "\n")
        except CannotRaceError as error:
            sys.exit(str(error))
    found = figures(done, args)
    print(told(found, soak=args.minutes > 0))
    return 0 if found["identical"] else 1


def progress(turn: Turn) -> str:
    speeds = ", ".join(f"{arm} {speed:.0f}{'*' * (arm in turn.noisy)}" for arm, speed in turn.speeds.items())
    drafts = turn.drafts_per_round["auto"]
    return f"{turn.ended_s:.0f} s, cycle {turn.cycle}, {turn.cell.name}: {speeds}; auto {drafts:.1f} drafts a round"


if __name__ == "__main__":
    sys.exit(main())
