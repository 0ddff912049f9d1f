"""What moving experts between ranks costs the rounds that go on meanwhile, and whether it changes a token.

    python benchmarks/parallel/moving_experts.py [--splits TP2+EP2,DP2+EP2] [--tokens 300] [--repeats 3]

Eight streams of one prompt, without drafts. Each split runs as it is ("still"), and with experts that move far more
often than by default ("moving"): a look every 25 rounds at a window of 50. A round's time is what passes between two
tokens of the first stream, as the caller sees it; beside it stands the longest that an order about experts held any
round up on any rank. Then, without a model: how long the leader takes for an order at DeepSeek-R1's size, 58 layers of
256 experts on 32 ranks with 32 redundant ones, loads by Zipf's law. Writes results/live_experts.json.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import words
from benchmarks.common.prompts import prompts
from benchmarks.common.results import save
from outrider import LLM, SamplingParams
from outrider.workers.experts.balance import ExpertBalance
from outrider.workers.experts.orders import NOTHING, Order, State
from outrider.workers.experts.placing import ExpertLayout
from outrider.workers.experts.policy import BalancePolicy

SPLITS = {
    "TP2+EP2": {"tensor_parallel_size": 2, "expert_parallel_size": 2},
    "DP2+EP2": {"data_parallel_size": 2, "expert_parallel_size": 2},
    "TP4+EP4": {"tensor_parallel_size": 4, "expert_parallel_size": 4},
}
ARMS: dict[str, dict[str, Any]] = {
    "still": {},
    "moving": {"enable_eplb": True, "eplb_window_size": 50, "eplb_step_interval": 25},
    "moving, 4 redundant": {
        "enable_eplb": True, "eplb_window_size": 50, "eplb_step_interval": 25, "num_redundant_experts": 4,
    },
}  # fmt: skip
STREAMS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=words, default=["TP2+EP2", "DP2+EP2"])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    found = {name: compare(SPLITS[name], args.tokens, args.repeats) for name in args.splits}
    for name, arms in found.items():
        for arm, figures in arms.items():
            print(f"{name} {arm}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    orders = order_times()
    print("orders at R1's size: " + ", ".join(f"{key} {value}" for key, value in orders.items()))
    command = f"benchmarks/parallel/moving_experts.py --splits {','.join(args.splits)} --tokens {args.tokens}"
    print(
        "written to",
        save("live_experts", f"{command} --repeats {args.repeats}", {"splits": found, "orders at R1's size": orders}),
    )


def compare(sizes: dict[str, int], tokens: int, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for _ in range(repeats):  # interleaved, so that changes of the machine's speed meet all alike
        for arm, settings in ARMS.items():
            runs[arm].append(measure({**sizes, **settings}, tokens))
    texts = {str(run["tokens"]) for arm in runs.values() for run in arm}
    return {arm: {**summed_up(each), "same tokens": len(texts) == 1} for arm, each in runs.items()}


def measure(settings: dict[str, Any], tokens: int) -> dict[str, Any]:
    params = SamplingParams(n=STREAMS, temperature=1.0, seed=0, max_tokens=tokens, ignore_eos=True)
    said: list[list[int]] = [[] for _ in range(STREAMS)]
    arrivals = []
    with LLM("scout", speculation="off", kv_cache_memory_bytes=128 << 20, **settings) as llm:
        for delta in llm.stream(prompts("code", 1)[0], params):
            said[delta.index] += delta.token_ids
            if delta.index == 0:
                arrivals.append(time.perf_counter())
        time.sleep(2.5)  # until ranks have reported
        ranks = llm.status()
    return {
        "tokens": said,
        "rounds": np.diff(arrivals),
        "held_up_s": max(rank.held_up_s for rank in ranks),
        "figures": ranks[0].counters.experts,
    }


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All repeats together."""
    rounds = 1000 * np.concatenate([run["rounds"] for run in runs])
    return {
        "rounds": len(rounds),
        "median_ms": round(float(np.median(rounds)), 3),
        "p99_ms": round(float(np.quantile(rounds, 0.99)), 3),
        "most_ms": round(float(rounds.max()), 3),
        "held_up_ms": round(1000 * max(run["held_up_s"] for run in runs), 3),
        "replacements": sum(run["figures"].replacements for run in runs),
        "moves": sum(run["figures"].moves for run in runs),
    }


def order_times() -> dict[str, float]:
    """Of every order until the leader has seen to all layers, its ranks answering at once that they are ready."""
    layout = ExpertLayout(experts=256, ranks=32, redundant_experts=32)
    policy = BalancePolicy(report_every=1, window=1, step_every=1, most_moves=100)
    balance, random = ExpertBalance(layout, policy), np.random.default_rng(0)
    loads = 1e5 / np.arange(1, 257) ** 0.6
    report = np.stack([[layer, *random.permutation(loads).astype(np.int64)] for layer in range(58)])
    answers = {Order.REPORT: report.ravel(), Order.ASK: np.array([State.READY])}
    times = []
    for _ in range(1000):
        began = time.perf_counter()
        order = balance.order()
        answer = answers.get(Order(int(order[0])), NOTHING) if len(order) else NOTHING
        balance.observe(answer)
        times.append(1000 * (time.perf_counter() - began))
    figures = balance.figures
    return {
        "median_ms": round(float(np.median(times)), 3),
        "most_ms": round(max(times), 3),
        "replacements": figures.replacements,
        "moves": figures.moves,
        "imbalance": round(max(figures.imbalance.values()), 3),
    }


if __name__ == "__main__":
    main()
