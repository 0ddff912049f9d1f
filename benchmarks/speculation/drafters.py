"""Who should draft, by kind of text: tokens a second with MTP, with prompt lookup, and with the chooser between them.

    python benchmarks/speculation/drafters.py [--kinds code,prose,edit] [--temperatures 0,0.8] [--draft-model DIR]

One engine; the arms differ in what the requests ask for, and are interleaved over the same prompts. "code" and "prose"
are held-out text. "edit" has some lines of code, and then the lines with one name changed, several times, the last
time begun: the answer copies what stands before it, as far as the model is up to that (scout mostly is, at T=0).
A figure is the median of tokens a second from the first token on; ratios are medians of the repeats' own.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import words
from benchmarks.common.prompts import prompts
from benchmarks.common.repeats import interleaved, median
from benchmarks.common.results import save
from benchmarks.common.timed_batches import BatchLLM, Decoded, acceptance_per_position
from outrider import SamplingParams

EDITED_TOKENS, COPIES, BEGUN = 24, 6, 4
SEED = 1


def edit_prompts(llm: BatchLLM, count: int) -> list[list[int]]:
    """Some lines and their edited copies, the last one begun: "self" has become another name in them."""
    assert llm.tokenizer is not None
    made = []
    for text in prompts("code", 1000):
        lines = "\n".join(text.split("\n")[-8:])
        piece = llm.tokenizer.encode(lines)[:EDITED_TOKENS]
        edited = llm.tokenizer.encode(lines.replace("self", "node"))[:EDITED_TOKENS]
        if len(piece) == len(edited) == EDITED_TOKENS:
            made.append(piece + edited * (COPIES - 1) + edited[:BEGUN])
    return made[:count]


def texts_of(llm: BatchLLM, kind: str, count: int) -> list[list[int]]:
    assert llm.tokenizer is not None
    if kind == "edit":
        return edit_prompts(llm, count)
    return [llm.tokenizer.encode(text) for text in prompts(kind, count)]


def runs(llm: BatchLLM, texts: list[list[int]], arm: str, temperature: float, args: Any) -> Iterator[Decoded]:
    """One repeat after another, over all prompts, `batch` at once."""
    for repeat in cycle(range(1000)):
        params = [
            SamplingParams(
                temperature=temperature,
                max_tokens=args.tokens,
                ignore_eos=True,
                seed=SEED + repeat * len(texts) + number,
                speculation="off" if arm == "off" else "auto",
                drafter=None if arm == "off" else arm,
            )
            for number in range(len(texts))
        ]
        parts = [
            llm.decode(texts[at : at + args.batch], params[at : at + args.batch])
            for at in range(0, len(texts), args.batch)
        ]
        yield added(parts)


def added(parts: list[Decoded]) -> Decoded:
    """Sums; counts by position place by place."""
    sums: dict[str, Any] = {}
    for name in Decoded.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        by_place = isinstance(values[0], tuple)
        sums[name] = tuple(map(sum, zip_longest(*values, fillvalue=0))) if by_place else sum(values)
    return Decoded(**sums)


def measure(llm: BatchLLM, kind: str, temperature: float, args: Any) -> dict[str, Any]:
    texts = texts_of(llm, kind, args.prompts)
    decoded: dict[str, list[Decoded]] = {arm: [] for arm in args.arms}

    def rate(arm: str, source: Iterator[Decoded]) -> Callable[[], float]:
        def run() -> float:
            decoded[arm].append(next(source))
            return decoded[arm][-1].tokens_per_second

        return run

    arms = {arm: rate(arm, runs(llm, texts, arm, temperature, args)) for arm in args.arms}
    interleaved(arms, 1)
    rates = interleaved(arms, args.repeats)
    figures = {arm: summary(decoded[arm][1:], rates[arm]) for arm in args.arms}
    return {"kind": kind, "temperature": temperature, "batch": args.batch, "arms": figures, **ratios(rates)}


def summary(decoded: list[Decoded], rates: list[float]) -> dict[str, Any]:
    rounds, drafted = sum(one.rounds for one in decoded), sum(one.drafted for one in decoded)
    return {
        "tokens_per_second": median(rates),
        "all": rates,
        "acceptance": sum(one.accepted for one in decoded) / drafted if drafted else None,
        "acceptance_per_position": acceptance_per_position(decoded),
        "tokens_per_round": sum(one.tokens for one in decoded) / rounds,
    }


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Lookup over MTP, and the chooser over the better of the single drafters: medians of the repeats' own ratios."""
    singles = [arm for arm in rates if arm not in ("off", "auto")]
    best = max(singles, key=lambda arm: median(rates[arm]))
    found = {"auto_over_best": median([a / b for a, b in zip(rates["auto"], rates[best], strict=True)])}
    if {"lookup", "mtp"} <= rates.keys():
        found["lookup_over_mtp"] = median([a / b for a, b in zip(rates["lookup"], rates["mtp"], strict=True)])
    return found


def line(case: dict[str, Any]) -> str:
    arms = ", ".join(
        f"{arm} {own['tokens_per_second']:.0f} ({own['tokens_per_round']:.2f} a round)"
        for arm, own in case["arms"].items()
    )
    told = ", ".join(f"{name} {case[name]:.2f}" for name in ("lookup_over_mtp", "auto_over_best") if name in case)
    return f"{case['kind']}, T={case['temperature']:g}, batch {case['batch']}: {arms}; {told}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout")
    parser.add_argument("--draft-model", help="a checkpoint with the same tokenizer: one more arm")
    parser.add_argument("--kinds", type=words, default=["code", "prose", "edit"])
    parser.add_argument("--temperatures", type=lambda text: [float(t) for t in words(text)], default=[0.0, 0.8])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=4, help="of each kind")
    parser.add_argument("--tokens", type=int, default=128, help="of output, of each prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="drafters", help="of the file of results")
    args = parser.parse_args()
    args.arms = ["off", "mtp", "lookup", *(["draft_model"] if args.draft_model else []), "auto"]
    return args


def main() -> None:
    args = arguments()
    cases = []
    with BatchLLM(args.model, draft_model=args.draft_model, enable_prefix_caching=False) as llm:
        for kind in args.kinds:
            for temperature in args.temperatures:
                cases.append(measure(llm, kind, temperature, args))
                print(line(cases[-1]), flush=True)
    command = f"benchmarks/speculation/drafters.py {shlex.join(sys.argv[1:])}".strip()
    print("written to", save(args.name, command, {"tokens": args.tokens, "cases": cases}))


if __name__ == "__main__":
    main()
