"""Decoding one stream: outrider with speculation off and auto against transformers' generate, in one run.

    .venv/bin/python benchmarks/decode.py [--model scout] [--tokens 96] [--repeats 5]

Same checkpoint, prompts and dtype; greedy; interleaved; medians of tokens per second after the first token. Each runs
in a process of its own, with as many threads as it chooses.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from common import interleaved, median, prompts, save

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


class Peer:
    """transformers in a process of its own, so that neither library's threads wait for the other's."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, __file__, "--model", model, "--peer"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def arm(self, prompt: list[int]) -> Callable[[int], int]:
        def generate(tokens: int) -> int:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps([prompt, tokens]) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

        return generate

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve_peer(model: str) -> None:
    """The other end: a prompt and a number of tokens on each line in, how many came on each line out."""
    from transformers import AutoModelForCausalLM  # slow to load, and only this end needs it

    peer = AutoModelForCausalLM.from_pretrained(resolve_model(model), dtype=torch.float32).eval()
    for line in sys.stdin:
        prompt, tokens = json.loads(line)
        ids = torch.tensor([prompt])
        out = peer.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        print(out.shape[1] - len(prompt), flush=True)


def measure(model: str, tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median tokens a second by kind of text and arm."""
    figures = {}
    peer = Peer(model)
    with LLM(model, enable_prefix_caching=False) as llm:
        assert llm.tokenizer is not None
        for kind in ("code", "prose"):
            prompt = llm.tokenizer.encode(prompts(kind, 1)[0])
            arms = {
                "transformers": rate(peer.arm(prompt), tokens),
                "off": rate(outrider_arm(llm, "off", prompt), tokens),
                "auto": rate(outrider_arm(llm, "auto", prompt), tokens),
            }
            interleaved(arms, 1)
            figures[kind] = {name: median(values) for name, values in interleaved(arms, repeats).items()}
    peer.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return serve_peer(args.model)
    figures = measure(args.model, args.tokens, args.repeats)
    for kind, row in figures.items():
        over_peer, over_off = row["off"] / row["transformers"], row["auto"] / row["off"]
        speeds = ", ".join(f"{name} {speed:.1f}" for name, speed in row.items())
        print(f"{kind}: tokens/s {speeds}; off is {over_peer:.2f} x transformers, auto {over_off:.2f} x off")
    print(
        "written to", save("decode", f"benchmarks/decode.py --tokens {args.tokens} --repeats {args.repeats}", figures)
    )
    return None


if __name__ == "__main__":
    main()
