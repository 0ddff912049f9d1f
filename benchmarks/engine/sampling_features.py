"""What each sampling feature costs, and what it leaves of speculation: scout on this machine, outrider alone.

    python benchmarks/engine/sampling_features.py [--batch 1,8] [--depth 3] [--repeats 3]

For every feature speculation off and at a fixed depth, interleaved with each other and with plain sampling. `beside
plain` is the speed beside plain sampling's with the same speculation: what the feature itself costs. `over off` is what
drafts bring under it, `accepted` the share of the drafts that stood. Temperature 0.8, held-out code.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers
from benchmarks.common.prompts import prompts, windows
from benchmarks.common.repeats import interleaved, median
from benchmarks.common.results import save
from benchmarks.common.timed_batches import BatchLLM, Decoded
from outrider import SamplingParams

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "logit_bias": {"logit_bias": dict.fromkeys(range(100, 400), 0.5)},
    "allowed_token_ids": {"allowed_token_ids": list(range(100, 4096))},
    "bad_words": {"bad_words": ["self", "return", "import", "the", "of the"]},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "frequency_penalty": {"frequency_penalty": 0.3},
    "presence_penalty": {"presence_penalty": 0.5},
    "cut": {"top_p": 0.95, "top_k": 40, "min_p": 0.02},
    "min_tokens": {"min_tokens": 64, "stop_token_ids": [0]},
    "stop": {"stop": ["@@@@"]},
    "logprobs": {"logprobs": 5},
    "regex": {"structured_outputs": {"regex": r"(\n|[ -~])*"}},
    "grammar": {"structured_outputs": {"grammar": "start: (/[ -~]/ | NL)+\nNL: /\\n/"}},
    "json": {"structured_outputs": {"json": {"type": "array", "items": {"type": "string"}, "minItems": 1000}}},
}
Arm = tuple[str, str]  # feature, speculation


def runs(llm: BatchLLM, arm: Arm, sets: list[list[list[int]]], tokens: int) -> Iterator[Decoded]:
    """One repeat after another, each with the next set of prompts and seeds of its own."""
    feature, speculation = arm
    for repeat, chosen in enumerate(itertools.cycle(sets)):
        params = [
            SamplingParams(
                temperature=0.8,
                max_tokens=tokens,
                ignore_eos=True,
                seed=repeat * len(chosen) + number,
                speculation="off" if speculation == "off" else int(speculation),
                **FEATURES[feature],
            )
            for number in range(len(chosen))
        ]
        yield llm.decode(chosen, params)


def measure(llm: BatchLLM, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    assert llm.tokenizer is not None
    sets = windows([llm.tokenizer.encode(text) for text in prompts("code", 1000)], 32, batch)
    decoded: dict[Arm, list[Decoded]] = {arm: [] for arm in itertools.product(FEATURES, ("off", str(args.depth)))}

    def rate(arm: Arm, source: Iterator[Decoded]) -> Callable[[], float]:
        def run() -> float:
            decoded[arm].append(next(source))
            return decoded[arm][-1].tokens_per_second

        return run

    arms = {arm: rate(arm, runs(llm, arm, sets, args.tokens)) for arm in decoded}
    interleaved(arms, 1)
    rates = {arm: median(found) for arm, found in interleaved(arms, args.repeats).items()}
    return {feature: row(feature, str(args.depth), rates, decoded) for feature in FEATURES}


def row(feature: str, depth: str, rates: dict[Arm, float], decoded: dict[Arm, list[Decoded]]) -> dict[str, float]:
    drafting = decoded[feature, depth][1:]
    return {
        "tokens_per_second_off": rates[feature, "off"],
        "off_beside_plain": rates[feature, "off"] / rates["plain", "off"],
        "drafting_beside_plain": rates[feature, depth] / rates["plain", depth],
        "over_off": rates[feature, depth] / rates[feature, "off"],
        "accepted": sum(one.accepted for one in drafting) / sum(one.drafted for one in drafting),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=numbers, default=[1, 8])
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96, help="of output, of each prompt")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    results = {}
    with BatchLLM("scout", enable_prefix_caching=False) as llm:
        for batch in args.batch:
            results[str(batch)] = measure(llm, batch, args)
            for feature, found in results[str(batch)].items():
                print(
                    f"batch {batch}, {feature}: off {found['off_beside_plain']:.2f} and drafting "
                    f"{found['drafting_beside_plain']:.2f} beside plain, {found['over_off']:.2f} over off, "
                    f"{found['accepted']:.0%} accepted",
                    flush=True,
                )
    command = f"benchmarks/engine/sampling_features.py {shlex.join(sys.argv[1:])}".strip()
    figures = {"threads": torch.get_num_threads(), "depth": args.depth, "tokens": args.tokens, "batches": results}
    print("written to", save("features", command, figures))


if __name__ == "__main__":
    main()
