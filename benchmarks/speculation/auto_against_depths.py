"""Draft depths on this machine under constant and changing load, and what the depth policy takes of a round.

    python benchmarks/speculation/auto_against_depths.py [--only constant,changing,decisions] [--batch 1,4,16]

*constant*: tokens a second and acceptance by position, by kind of text, temperature, batch and depth (off, 1..5, auto)
or drafter (`--speculation off,auto,mtp,lookup`: what auto makes of one alone), the arms in turn, with new engines in
every repeat; auto against the best static depth, as the other repeats name it and as the same turns do, which favours
chance, and against off, turn by turn: a turn of four sequences tells little more than one of a single one, so larger
batches have many too. A second is a sequence's own, from the batch's first tokens to its last: sequences that draft by
worth end apart.
*changing*: a day of load in a minute, requests that arrive by chance at a rate that rises and falls, static depths and
auto side by side, hour by hour in turn; what counts is the tokens of a second in which anything ran.
*decisions*: microseconds that the depth policy takes of a round.

Texts are held out, "chat" goes through the chat template, "repetitive" repeats a few lines, and "adversarial" is made
of tokens by chance at T=2. Sequences do not end at their end of sequence.
"""

import argparse
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers, words
from benchmarks.common.results import save
from benchmarks.speculation.changing_load import replay
from benchmarks.speculation.constant_load import line, run_constant_loads
from benchmarks.speculation.depth_arms import ARMS, Engines, verdict
from benchmarks.speculation.policy_time import decision_us
from outrider.workers.config import resolve_model

BATCHES = [1, 4, 16]
HOURS = 6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--draft-model", help="a checkpoint with the same tokenizer, that may draft too")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", type=words, default=["decisions", "constant", "changing"])
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


def decisions() -> dict[str, dict[str, float]]:
    return {str(sequences): decision_us(sequences) for sequences in (1, 4, 16, 64)}


def main() -> None:
    args = arguments()
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "tokens": args.tokens}
    name = args.name or f"speculation-{resolve_model(args.model).name}"
    command = f"benchmarks/speculation/auto_against_depths.py {shlex.join(sys.argv[1:])}".strip()
    if "decisions" in args.only:
        figures["decision_us"] = decisions()
        for sequences, parts in figures["decision_us"].items():
            told = ", ".join(f"{part} {us:.0f} us" for part, us in parts.items())
            print(f"for {sequences}: {told}")
    if "constant" in args.only:

        def keep(found: list[dict[str, Any]]) -> None:
            figures["cells"] = found
            save(name, command, figures)

        run_constant_loads(args, keep)
        print(*map(line, figures["cells"]), sep="\n", flush=True)
    if "changing" in args.only:
        with ExitStack() as stack:
            figures["replay"] = replay(Engines(args, stack), args)
        print(f"the day: {verdict(figures['replay'])}")
    print("written to", save(name, command, figures))


if __name__ == "__main__":
    main()
