"""Decoding one stream: outrider with speculation off and auto against transformers' generate, in one run.

    .venv/bin/python benchmarks/decode.py [--model scout] [--tokens 96] [--repeats 5]

Same checkpoint, prompts and dtype; greedy; interleaved; medians of tokens per second after the first token. Threads are
each one's own choice among those that OMP_NUM_THREADS leaves.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import interleaved, median, prompts, save
from transformers import AutoModelForCausalLM

from outrider import LLM, SamplingParams
from outrider.workers.config import resolve_model


def rate(generate: Callable[[int], int], tokens: int) -> Callable[[], float]:
    """Tokens a second after the first: the time of a long run less that of a run of one token."""

    def run() -> float:
        began = time.perf_counter()
        first = generate(1)
        between = time.perf_counter()
        whole = generate(tokens)
        ended = time.perf_counter()
        return (whole - first) / ((ended - between) - (between - began))

    return run


def outrider_arm(llm: LLM, speculation: str, prompt: list[int]) -> Callable[[int], int]:
    def generate(tokens: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, speculation=speculation)
        return len(llm.generate([prompt], params)[0].outputs[0].token_ids)

    return generate


def transformers_arm(model: Any, prompt: list[int]) -> Callable[[int], int]:
    ids = torch.tensor([prompt])

    def generate(tokens: int) -> int:
        out = model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return int(out.shape[1]) - len(prompt)

    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    peer = AutoModelForCausalLM.from_pretrained(resolve_model(args.model), dtype=torch.float32).eval()
    figures = {}
    with LLM(args.model, enable_prefix_caching=False) as llm:
        assert llm.tokenizer is not None
        for kind in ("code", "prose"):
            prompt = llm.tokenizer.encode(prompts(kind, 1)[0])
            arms = {
                "transformers": rate(transformers_arm(peer, prompt), args.tokens),
                "off": rate(outrider_arm(llm, "off", prompt), args.tokens),
                "auto": rate(outrider_arm(llm, "auto", prompt), args.tokens),
            }
            interleaved(arms, 1)
            figures[kind] = {name: median(values) for name, values in interleaved(arms, args.repeats).items()}
            row = figures[kind]
            over_peer, over_off = row["off"] / row["transformers"], row["auto"] / row["off"]
            print(f"{kind}: tokens/s {row}; off is {over_peer:.2f} x transformers, auto {over_off:.2f} x off")
    print(
        "written to", save("decode", f"benchmarks/decode.py --tokens {args.tokens} --repeats {args.repeats}", figures)
    )


if __name__ == "__main__":
    main()
