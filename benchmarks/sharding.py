"""What each split of a stage exchanges: collectives, bytes and time a round, by purpose, beside one process's round.

Ranks of one machine share its bandwidth, so the round's own time says little of a cluster; the counts and bytes do.

.venv/bin/python benchmarks/sharding.py [--model scout] [--tokens 64] [--splits TP2,TP2+EP2,...]
"""

import argparse
import time
from typing import Any

from common import prompts, save, words

from outrider import LLM, SamplingParams
from outrider.workers.parallel.traffic import Traffic

SPLITS = {
    "one process": {},
    "TP2": {"tensor_parallel_size": 2},
    "TP2+EP2": {"tensor_parallel_size": 2, "expert_parallel_size": 2},
    "DP2+EP2": {"data_parallel_size": 2, "expert_parallel_size": 2},
    "TP4": {"tensor_parallel_size": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--splits", type=words, default=list(SPLITS))
    args = parser.parse_args()
    found = {name: measure(args.model, SPLITS[name], args.streams, args.tokens) for name in args.splits}
    for name, figures in found.items():
        exchanged = figures["exchanged"].values()
        print(
            f"{name:12} {figures['round_ms']:6.2f} ms a round, in exchanges {sum(e['ms'] for e in exchanged):5.2f} ms:"
            f" {sum(e['count'] for e in exchanged):5.1f} collectives,"
            f" {sum(e['bytes'] for e in exchanged):8.0f} bytes a rank"
        )
    command = f"benchmarks/sharding.py --streams {args.streams} --tokens {args.tokens}"
    print("written to", save("sharding", command, {"splits": found}))


def measure(model: str, sizes: dict[str, int], streams: int, tokens: int) -> dict[str, Any]:
    """Of decoding rounds of one row a stream, without drafts."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    texts = prompts("code", streams)
    with LLM(model, speculation="off", kv_cache_memory_bytes=256 << 20, **sizes) as llm:
        llm.generate(texts, params)  # from here on the prompts are in the cache
        before = settled(llm)
        llm.generate(texts, params)
        after = settled(llm)
    rounds = after.counters.rounds - before.counters.rounds
    return {
        "rounds": rounds,
        "round_ms": 1000 * (after.busy_s - before.busy_s) / rounds,
        "exchanged": {
            purpose: {
                "count": (carried.count - before.traffic.get(purpose, Traffic()).count) / rounds,
                "bytes": (carried.bytes - before.traffic.get(purpose, Traffic()).bytes) / rounds,
                "ms": 1000 * (carried.seconds - before.traffic.get(purpose, Traffic()).seconds) / rounds,
            }
            for purpose, carried in after.traffic.items()
        },
    }


def settled(llm: LLM) -> Any:
    """The leader's status, once it reports what has been done."""
    time.sleep(2.5)
    return llm.status()[0]


if __name__ == "__main__":
    main()
