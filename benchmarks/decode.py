"""Decoding one stream: outrider with speculation off and auto against transformers' generate, in one run.

    .venv/bin/python benchmarks/decode.py [--model scout] [--tokens 96] [--repeats 5]

Same checkpoint, prompts, threads and dtype; greedy; interleaved; medians of tokens per second, prefill included.
"""

import argparse
import time
from collections.abc import Callable

import torch
from common import interleaved, median, prompts, save
from transformers import AutoModelForCausalLM

from outrider import LLM, SamplingParams
from outrider.workers.config import resolve_model


def outrider_arm(llm: LLM, speculation: str, prompt: list[int], tokens: int) -> Callable[[], float]:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, speculation=speculation)

    def run() -> float:
        began = time.perf_counter()
        output = llm.generate([prompt], params)[0].outputs[0]
        return len(output.token_ids) / (time.perf_counter() - began)

    return run


def transformers_arm(model: torch.nn.Module, prompt: list[int], tokens: int) -> Callable[[], float]:
    ids = torch.tensor([prompt])

    def run() -> float:
        began = time.perf_counter()
        out = model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)  # type: ignore[operator]
        return float(out.shape[1] - len(prompt)) / (time.perf_counter() - began)

    return run


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
                "transformers": transformers_arm(peer, prompt, args.tokens),
                "off": outrider_arm(llm, "off", prompt, args.tokens),
                "auto": outrider_arm(llm, "auto", prompt, args.tokens),
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
