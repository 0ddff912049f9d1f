"""Races outrider against its peers: same checkpoint, prompts, lengths and threads, interleaved in one run.

    python benchmarks/peers/race.py --model scout --dtype float32 --batch 1,4,8 --prefill 512,4096
        --contestants outrider:speculation=off transformers vllm llama.cpp

Each figure is a median of tokens a second: decoding from the first token to the last of all prompts, or reading a
prompt. Each repeat has prompts of its own, the same for all; the first contestant's figure over each other's stands in
brackets. Greedy, and the end of a sequence does not end it. One contestant computes at a time, the others wait for a
line. What a contestant's options mean: contestants.py; how to install the peers: README.md.
"""

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers, words
from benchmarks.common.prompts import prompts, windows
from benchmarks.common.repeats import interleaved, median
from benchmarks.common.results import save
from benchmarks.peers.contestants import ENVS, CannotRaceError, Course, start
from benchmarks.peers.runner import Answer, Runner
from outrider.workers.config import resolve_model
from outrider.workers.text.tokenizer import Tokenizer

SETTLE_S = 0.3  # idle threads of the last contestant may spin for up to 0.2 s
TRIES = 10  # of a run that others disturb


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one column of the table measures."""

    name: str
    prompt_sets: list[list[list[int]]]  # the prompts of each repeat
    tokens: int

    def rate(self, prompts: list[list[int]], answer: Answer) -> float:
        """Tokens a second: of the prompt if one token was asked for, of the output after the first ones otherwise."""
        if self.tokens == 1:
            return sum(map(len, prompts)) / answer.seconds_first
        return len(prompts) * (self.tokens - 1) / (answer.seconds - answer.seconds_first)

    def rates(self, runner: Runner, most_others: float, others: list[float]) -> Iterator[float]:
        """One repeat's rate after another, leaving out the first set of prompts: that one was the warm-up's.

        A run is tried again while others take more than that share of the machine; `others` gains what they took.
        """
        for chosen in itertools.islice(itertools.cycle(self.prompt_sets), 1, None):
            tries = (settled(runner, chosen, self.tokens) for _ in range(TRIES))
            best = min(until(lambda answer: answer.others <= most_others, tries), key=lambda answer: answer.others)
            others.append(best.others)
            yield self.rate(chosen, best)


def settled(runner: Runner, prompts: list[list[int]], tokens: int) -> Answer:
    time.sleep(SETTLE_S)
    return runner.run(prompts, tokens)


def until(good: Callable[[Answer], bool], answers: Iterator[Answer]) -> list[Answer]:
    """The answers up to the first good one."""
    taken = []
    for answer in answers:
        taken.append(answer)
        if good(answer):
            break
    return taken


def cases(args: argparse.Namespace, tokenizer: Tokenizer, max_length: int) -> list[Case]:
    texts = {kind: [tokenizer.encode(text) for text in prompts(kind, 1000)] for kind in args.kinds}
    decoding = [
        Case(
            name=f"{kind} x{batch}",
            prompt_sets=windows(texts[kind], args.prompt_tokens, batch),
            tokens=args.tokens,
        )
        for kind in args.kinds
        for batch in args.batch
    ]
    reading = []
    for asked in args.prefill:
        length = min(asked, max_length - 1)  # the token it is asked for has its place too
        reading.append(Case(name=f"prefill {length}", prompt_sets=windows(texts[args.kinds[0]], length, 1), tokens=1))
    return decoding + reading


def course(args: argparse.Namespace, model: Path, listed: list[Case]) -> Course:
    first = [case.prompt_sets[0] for case in listed]
    longest = max(len(chosen[0]) + case.tokens for chosen, case in zip(first, listed, strict=True))
    return Course(
        model=model,
        dtype=args.dtype,
        threads=args.threads,
        max_prompts=max(map(len, first)),
        max_length=longest,
        max_batch_tokens=max(sum(map(len, chosen)) for chosen in first),
    )


def gather(names: list[str], run: Course, stack: ExitStack) -> tuple[list[Runner], dict[str, str]]:
    """Everyone who can race, loaded and waiting, and why the others cannot."""
    runners, absent = [], {}
    for number, name in enumerate(names):
        print(f"loading {name} ...", file=sys.stderr)
        try:
            log = ENVS / "logs" / f"{number}-{name.replace('/', '_')}.log"
            runners.append(stack.enter_context(Runner(name, start(name, run), log)))
        except CannotRaceError as error:
            absent[name] = str(error)
            print(f"{name} cannot race: {error}", file=sys.stderr)
    return runners, absent


def agreement(runners: list[Runner], case: Case) -> dict[str, int]:
    """The warm-up, and how many leading tokens each shares with the first contestant, over all prompts the least."""
    said = {runner.name: runner.run(case.prompt_sets[0], case.tokens).tokens for runner in runners}
    reference = said[runners[0].name]
    return {name: min(map(common_length, reference, tokens)) for name, tokens in said.items()}


def common_length(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True)))


def race(runners: list[Runner], listed: list[Case], repeats: int, most_others: float) -> dict[str, dict[str, Any]]:
    """By case: every rate, its median by contestant, the first one's ratio over each, the tokens they agree on, and
    what share of the machine others took.
    """
    results = {}
    for case in listed:
        print(f"racing {case.name} ...", file=sys.stderr)
        agreed = agreement(runners, case)
        others: dict[str, list[float]] = {one.name: [] for one in runners}
        arms: dict[str, Callable[[], float]] = {
            one.name: partial(next, case.rates(one, most_others, others[one.name])) for one in runners
        }
        figures = interleaved(arms, repeats)
        medians = {name: median(values) for name, values in figures.items()}
        results[case.name] = {
            "tokens_per_second": medians,
            "first_over_it": {name: medians[runners[0].name] / value for name, value in medians.items()},
            "same_first_tokens": agreed,
            "of_tokens": case.tokens,
            "all": figures,
            "others": {name: median(shares) for name, shares in others.items()},
        }
    return results


def table(results: dict[str, dict[str, Any]], names: list[str]) -> str:
    width = max(map(len, names)) + 2

    def row(label: str, cells: Iterable[str]) -> str:
        return f"{label:<{width}}" + "".join(f"{cell:>18}" for cell in cells)

    every = list(results.values())
    lines = [row("", results)]
    lines += [
        row(name, (f"{r['tokens_per_second'][name]:.1f} ({r['first_over_it'][name]:.2f})" for r in every))
        for name in names
    ]
    lines.append(f"leading tokens that equal {names[0]}'s:")
    lines += [row(name, (f"{r['same_first_tokens'][name]} of {r['of_tokens']}" for r in every)) for name in names[1:]]
    lines.append("median share of the machine that others took meanwhile:")
    lines += [row(name, (f"{r['others'][name]:.0%}" for r in every)) for name in names]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch", type=numbers, default=[1, 4, 8], help="prompts at once (none: '')")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--kinds", type=words, default=["code", "prose"])
    parser.add_argument("--prefill", type=numbers, default=[], help="lengths of prompts to read")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--others", type=float, default=0.1, help="share of the machine that others may take of a run")
    parser.add_argument("--name", help="of the file of results (race-MODEL-DTYPE)")
    every = ["outrider:speculation=off", "transformers", "vllm", "llama.cpp"]
    parser.add_argument("--contestants", nargs="+", default=every, metavar="NAME[:KEY=VALUE,...]")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    model = resolve_model(args.model)
    tokenizer = Tokenizer.load(model)
    if tokenizer is None:
        sys.exit(f"{model} has no tokenizer to make prompts with")
    listed = cases(args, tokenizer, json.loads((model / "config.json").read_text())["max_position_embeddings"])
    with ExitStack() as stack:
        runners, absent = gather(args.contestants, course(args, model, listed), stack)
        if not runners:
            sys.exit("no contestant can race")
        results = race(runners, listed, args.repeats, args.others)
        versions = {runner.name: runner.version for runner in runners}
    print(table(results, list(versions)))
    figures = {"versions": versions, "absent": absent, "threads": args.threads, "cases": results}
    command = f"benchmarks/peers/race.py {shlex.join(sys.argv[1:])}"
    print("written to", save(args.name or f"race-{model.name}-{args.dtype}", command, figures))


if __name__ == "__main__":
    main()
