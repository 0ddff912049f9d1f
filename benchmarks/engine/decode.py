"""Decoding on this machine, outrider alone: tokens a second by batch, prompt length, kind of text and temperature.

    python benchmarks/engine/decode.py [--model scout] [--dtype float32] [--full] [--speculation off,4,auto]

Speculation off, at fixed depths and auto; the arms of a case are interleaved over the same prompts, and a figure is the
median of tokens a second from the moment when every prompt has its first token to the last token of all. "off" is an
engine that loads no drafter. Every repeat has prompts of its own, held-out texts one running on into the next; the end
of a sequence does not end it. T=0 flatters a small model's drafts (its greedy text loops): look at T=0.8 beside it.

The default measures each axis through one corner: batches at the shortest prompt, prompts at the smallest batch, and
fixed depths there alone. --full measures every combination. The race against other engines is peers/race.py.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers, words
from benchmarks.common.prompts import prompts, windows
from benchmarks.common.repeats import interleaved, median, paired
from benchmarks.common.results import save
from benchmarks.common.timed_batches import BatchLLM, Decoded
from outrider import SamplingParams
from outrider.workers.config import resolve_model

BATCHES, LENGTHS, DEPTHS = [1, 2, 4, 8, 16], [32, 512, 4096], ["off", "1", "2", "3", "4", "6", "8", "auto"]
SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of the grid, measured with each arm in turn."""

    kind: str
    temperature: float
    prompt_tokens: int
    batch: int
    arms: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}, T={self.temperature:g}, {self.prompt_tokens} prompt tokens, batch {self.batch}"


def full_grid(args: argparse.Namespace, longest: int) -> list[Case]:
    """Every combination; a prompt is cut to what the model's length leaves it."""
    lengths = [min(length, longest) for length in args.prompt_tokens]
    points = itertools.product(args.kinds, args.temperatures, lengths, args.batch)
    return [Case(kind=k, temperature=t, prompt_tokens=p, batch=b, arms=args.speculation) for k, t, p, b in points]


def corner_grid(args: argparse.Namespace, longest: int) -> list[Case]:
    """The full grid's points on its axes: fixed depths at the corner alone, long prompts with one kind of text."""
    cases = full_grid(args, longest)
    corner = cases[0]
    few = tuple(arm for arm in args.speculation if not arm.isdigit()) or args.speculation
    chosen = []
    for case in cases:
        short, alone = case.prompt_tokens == corner.prompt_tokens, case.batch == corner.batch
        first_text = (case.kind, case.temperature) == (corner.kind, corner.temperature)
        if short or (alone and first_text):
            arms = case.arms if short and alone else few
            chosen.append(Case(**{**_fields(case), "arms": arms}))
    return chosen


def _fields(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


class Engines:
    """One engine that drafts and one that cannot, loaded as the arms ask for them."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        self._stack = stack
        self._loaded: dict[str, BatchLLM] = {}
        self._settings: dict[str, Any] = {
            "dtype": args.dtype,
            "quantization": args.quantization,
            "kernels": args.kernels,
            "max_num_seqs": max(args.batch),
            "enable_prefix_caching": False,
        }
        self._model = args.model

    def of(self, arm: str) -> BatchLLM:
        speculation = "off" if arm == "off" else "auto"
        if speculation not in self._loaded:
            llm = BatchLLM(self._model, speculation=speculation, **self._settings)
            self._loaded[speculation] = self._stack.enter_context(llm)
        return self._loaded[speculation]


def runs(llm: BatchLLM, case: Case, arm: str, sets: list[list[list[int]]], tokens: int) -> Iterator[Decoded]:
    """One repeat after another, each with the next set of prompts and seeds of its own."""
    for repeat, chosen in enumerate(itertools.cycle(sets)):
        params = [
            SamplingParams(
                temperature=case.temperature,
                max_tokens=tokens,
                ignore_eos=True,
                seed=SEED + repeat * case.batch + number,
                speculation=int(arm) if arm.isdigit() else arm,
            )
            for number in range(case.batch)
        ]
        yield llm.decode(chosen, params)


def measure(case: Case, engines: Engines, texts: list[list[int]], tokens: int, repeats: int) -> dict[str, Any]:
    sets = windows(texts, case.prompt_tokens, case.batch)
    decoded: dict[str, list[Decoded]] = {arm: [] for arm in case.arms}

    def rate(arm: str, source: Iterator[Decoded]) -> Callable[[], float]:
        def run() -> float:
            decoded[arm].append(next(source))
            return decoded[arm][-1].tokens_per_second

        return run

    arms = {arm: rate(arm, runs(engines.of(arm), case, arm, sets, tokens)) for arm in case.arms}
    interleaved(arms, 1)
    rates = interleaved(arms, repeats)
    row = {arm: summary(decoded[arm][1:], rates[arm], case) for arm in case.arms}
    if "off" in row:
        for arm, over_off in paired(rates, "off").items():
            row[arm]["over_off"] = over_off
    return {**_fields(case), "arms": row}


def summary(decoded: list[Decoded], rates: list[float], case: Case) -> dict[str, Any]:
    rounds, drafted = sum(one.rounds for one in decoded), sum(one.drafted for one in decoded)
    prompt_tokens = case.batch * case.prompt_tokens
    return {
        "tokens_per_second": median(rates),
        "all": rates,
        "first_token_s": median([one.first_s for one in decoded]),
        "prompt_tokens_per_second": median([prompt_tokens / one.first_s for one in decoded]),
        "acceptance": sum(one.accepted for one in decoded) / drafted if drafted else None,
        "mean_depth": drafted / rounds,
        "tokens_per_round": sum(one.tokens for one in decoded) / rounds,
    }


def line(case: dict[str, Any]) -> str:
    parts = []
    for arm, figures in case["arms"].items():
        part = f"{arm} {figures['tokens_per_second']:.1f}"
        if arm != "off" and "over_off" in figures:
            part += f" ({figures['over_off']:.2f} x off"
            part += (
                f", {figures['acceptance']:.0%} of {figures['mean_depth']:.1f} accepted)"
                if figures["acceptance"]
                else ")"
            )
        parts.append(part)
    return ", ".join(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--quantization", choices=["int8"])
    parser.add_argument("--kernels", default="auto", choices=["auto", "compiled", "torch"])
    parser.add_argument("--batch", type=numbers, default=BATCHES)
    parser.add_argument("--prompt-tokens", type=numbers, default=LENGTHS)
    parser.add_argument("--speculation", type=lambda text: tuple(words(text)), default=tuple(DEPTHS))
    parser.add_argument("--temperatures", type=lambda text: [float(t) for t in words(text)], default=[0.0, 0.8])
    parser.add_argument("--kinds", type=words, default=["code", "prose"])
    parser.add_argument("--tokens", type=int, default=96, help="of output, of each prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="every combination")
    parser.add_argument("--name", help="of the file of results (decode-MODEL-DTYPE)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    results = []
    with ExitStack() as stack:
        engines = Engines(args, stack)
        llm = engines.of(args.speculation[0])
        if llm.tokenizer is None:
            sys.exit(f"{args.model} has no tokenizer to make prompts with")
        texts = {kind: [llm.tokenizer.encode(text) for text in prompts(kind, 1000)] for kind in args.kinds}
        longest = llm.status()[0].info.max_model_len - args.tokens  # type: ignore[union-attr]  # it is ready
        for case in full_grid(args, longest) if args.full else corner_grid(args, longest):
            results.append(measure(case, engines, texts[case.kind], args.tokens, args.repeats))
            print(f"{case.name}: {line(results[-1])}", flush=True)
    name = args.name or f"decode-{resolve_model(args.model).name}-{args.quantization or args.dtype}"
    command = f"benchmarks/engine/decode.py {shlex.join(sys.argv[1:])}".strip()
    figures = {"threads": torch.get_num_threads(), "tokens": args.tokens, "cases": results}
    print("written to", save(name, command, figures))


if __name__ == "__main__":
    main()
