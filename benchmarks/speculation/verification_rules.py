"""What coupled sampling costs: tokens a round under it, under rejection sampling and under block verification.

    python benchmarks/speculation/verification_rules.py [--depths 1,2,3,4,6] [--temperatures 0.6,0.8,1]

The same prompts, depth and model; only the rule differs. No time is measured: these rules run in PyTorch only.
A figure is emitted tokens over rounds; +- is one standard error over the prompts.
"""

import argparse
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers, words
from benchmarks.common.prompts import prompts
from benchmarks.common.results import save
from outrider import LLM, SamplingParams

RULES = ("coupled", "rejection", "block")


def tokens_per_round(llm: LLM, texts: list[str], depth: int, temperature: float, tokens: int) -> list[float]:
    """Of each prompt: one, and the share of its rounds in which the first j drafts stood, for every j up to `depth`."""
    params = [
        SamplingParams(temperature=temperature, max_tokens=tokens, ignore_eos=True, seed=i, speculation=depth)
        for i in range(len(texts))
    ]
    found = []
    for out in llm.generate(texts, params):
        own = out.outputs[0].speculation
        assert own is not None
        by_position = zip(own.accepted_per_position, own.drafted_per_position, strict=True)
        found.append(1.0 + sum(accepted / tried for accepted, tried in by_position if tried))
    return found


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = []
    for rule in RULES:
        with LLM("scout", speculation=16, verification=rule, kernels="torch") as llm:
            for kind in args.kinds:
                texts = prompts(kind, args.prompts)
                for temperature in args.temperatures:
                    for depth in args.depths:
                        found = tokens_per_round(llm, texts, depth, temperature, args.tokens)
                        error = statistics.stdev(found) / len(found) ** 0.5
                        case = {"rule": rule, "kind": kind, "temperature": temperature, "depth": depth}
                        cases.append({**case, "tokens_per_round": statistics.mean(found), "standard_error": error})
                        print({name: cases[-1][name] for name in (*case, "tokens_per_round")}, flush=True)
    return cases


def table(cases: list[dict[str, Any]]) -> str:
    """Markdown: a row for each kind, temperature and depth."""
    by_place: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for case in cases:
        by_place.setdefault((case["kind"], case["temperature"], case["depth"]), {})[case["rule"]] = case
    lines = [
        "| text | T | drafts | coupled | rejection | block | block over coupled |",
        "|---|---|---|---|---|---|---|",
    ]
    for (kind, temperature, depth), own in by_place.items():
        cells = [f"{own[rule]['tokens_per_round']:.2f} ± {own[rule]['standard_error']:.2f}" for rule in RULES]
        ratio = own["block"]["tokens_per_round"] / own["coupled"]["tokens_per_round"]
        lines.append(f"| {kind} | {temperature:g} | {depth} | {' | '.join(cells)} | {ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=numbers, default=[1, 2, 4, 6])
    parser.add_argument("--temperatures", type=lambda text: [float(t) for t in words(text)], default=[0.8, 1.0])
    parser.add_argument("--kinds", type=words, default=["code", "prose"])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=96)
    args = parser.parse_args()
    cases = measure(args)
    print(table(cases))
    command = f"benchmarks/speculation/verification_rules.py {shlex.join(sys.argv[1:])}".strip()
    print("written to", save("rules", command, {"tokens": args.tokens, "prompts": args.prompts, "cases": cases}))


if __name__ == "__main__":
    main()
