"""More requests than a served scout can do, from one token, and from two whose demands are 100 to 1.

    python benchmarks/overload.py [--seconds 60] [--times 10]

Requests arrive at random, at a rate; none is retried. Exits 1 where a promise is not kept. Clients that never read are
in slow_readers.py, mutated requests in fuzz.py.
"""

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the repository's root, where `benchmarks` is
from benchmarks.serving.overload_cluster import SEATS, Clients, Cluster, Phase, a_cluster, at_once, percentile, told

QUEUE_WAIT_S = 0.05  # no request waits for another to end: that takes 0.2 s on average, and a second at times
SETTLE_S = 10.0  # before two tokens are counted: the first answers take 4 s, and all begin empty


async def at_rates(rates: dict[Clients, float], seconds: float, settle_s: float = 0.0) -> Phase:
    """Requests that arrive by chance, so many a second of each token, for `seconds` after the first `settle_s`."""
    phase, since = Phase(seconds), time.monotonic() + settle_s
    until = since + seconds
    tasks: set[asyncio.Task[None]] = set()

    async def arrive(clients: Clients, rate: float) -> None:
        dice, due = random.Random(clients.name), time.monotonic()
        while (due := due + dice.expovariate(rate)) < until:
            await asyncio.sleep(due - time.monotonic())
            tasks.add(task := asyncio.create_task(clients.ask(phase, until, since)))
            task.add_done_callback(tasks.discard)

    await asyncio.gather(*(arrive(clients, rate) for clients, rate in rates.items()))
    await asyncio.gather(*tasks)
    return phase


async def overload(cluster: Cluster, seconds: float, times: float) -> tuple[dict[str, Any], list[str]]:
    heavy, light = cluster.clients("heavy"), cluster.clients("light")
    await at_once(heavy, SEATS + 2, 20)
    peak = await at_once(heavy, SEATS + 2, 20)
    rate = sum(peak.done.values()) / peak.seconds
    calm = await at_rates({heavy: 0.9 * rate}, 30)
    before = cluster.memory_mb()
    over = await at_rates({heavy: times * rate}, seconds)
    after = cluster.memory_mb()
    shared = await at_rates({heavy: 60 * rate, light: 0.6 * rate}, 30, SETTLE_S)
    await heavy.close()
    await light.close()
    figures = {
        "peak_per_second": round(rate, 2),
        "at_0.9": calm.figures(),
        f"at_{times:g}": over.figures(),
        "goodput_over_peak": round(sum(over.done.values()) / seconds / rate, 3),
        "first_token_p99_over_0.9": round(percentile(over.first_token, 0.99) / percentile(calm.first_token, 0.99), 2),
        "memory_mb": {"before": before, "after": after},
        "memory_growth": max(round(after[name] / before[name] - 1, 3) for name in before),
        "two_tokens": {**shared.figures(), "done": dict(shared.done), "refused": dict(shared.refusals)},
        "light_share": round(shared.done["light"] / max(1, sum(shared.done.values())), 3),
    }
    return figures, broken_promises(figures, f"at_{times:g}")


def broken_promises(figures: dict[str, Any], overloaded: str) -> list[str]:
    """`overloaded`: the figures' name of the phase with too many requests."""
    kept = {
        "refused p99 <= 50 ms": figures[overloaded]["refused_p99_ms"] <= 50,
        "first token p99 <= 2 x that at 0.9": figures["first_token_p99_over_0.9"] <= 2,
        "goodput >= 0.9 of peak": figures["goodput_over_peak"] >= 0.9,
        "memory <= +10 %": figures["memory_growth"] <= 0.1,
        "light token >= 45 %": figures["light_share"] >= 0.45,
        "only OK and RESOURCE_EXHAUSTED": set(figures[overloaded]["statuses"]) <= {"OK", "RESOURCE_EXHAUSTED"},
    }
    return [promise for promise, good in kept.items() if not good]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10)
    args = parser.parse_args()
    with a_cluster("--max-queue-wait-s", str(QUEUE_WAIT_S)) as cluster:
        figures, broken = asyncio.run(overload(cluster, args.seconds, args.times))
    return told("overload", figures, broken)


if __name__ == "__main__":
    sys.exit(main())
