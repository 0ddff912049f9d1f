"""Injects faults while many streams run, and counts lost and changed streams and the time to recover.

    .venv/bin/python benchmarks/chaos.py [--episodes 60] [--seed 1] [--streams 1,64,512] [--json FILE]
    .venv/bin/python benchmarks/chaos.py --cuts 2000     # cuts streams after every message
    .venv/bin/python benchmarks/chaos.py --poison        # one request that kills every engine, beside 100 others
    .venv/bin/python benchmarks/chaos.py --soak 60       # minutes, with a fault every minute

Serves scout on two replicas of two stages behind two gateways. The same seed gives the same schedule of faults. Every
stream must be equal to the output of the same request without faults; the exit status is 1 if one is not.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import numbers, prompts, record
from faults.cluster import Cluster
from faults.cuts import cut_everywhere
from faults.load import EpisodeResult, LoadGenerator
from faults.poison import run_beside_poison
from faults.requests import ChaosRequest, chaos_requests
from faults.schedule import FAULTS, Episode, Fault, schedule
from faults.soak import soak

MAX_TOKENS = 32
TEXTS = 4  # prompts of each kind


def all_requests(max_tokens: int = MAX_TOKENS) -> list[ChaosRequest]:
    return chaos_requests([text[:200] for text in prompts("code", TEXTS) + prompts("prose", TEXTS)], max_tokens)


def main() -> int:
    args = arguments()
    if args.replay:
        for episode in planned_episodes(args):
            print(episode)
        return 0
    with contextlib.closing(Cluster()) as cluster:
        mode, figures = asyncio.run(run(args, cluster))
    print(json.dumps({name: value for name, value in figures.items() if name != "samples"}, indent=1))
    if args.json:
        save(args.json, mode, figures)
    return 1 if figures["lost"] or figures["changed"] else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="Seed of the schedule. [random, and printed]")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=None, help="Start no episode after this many minutes.")
    parser.add_argument("--streams", type=numbers, default=[1, 64, 512], help="Streams per episode.")
    parser.add_argument(
        "--faults", default="", help="Faults to inject, as the schedule prints them, separated by commas. [all]"
    )
    parser.add_argument("--replay", action="store_true", help="Print the schedule without running it.")
    parser.add_argument("--only", type=numbers, default=[], help="Run only the episodes with these numbers.")
    parser.add_argument("--cuts", type=int, default=0, help="Cut streams this many times instead of running episodes.")
    parser.add_argument("--poison", action="store_true", help="Run a request that kills every engine instead.")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="Run a soak test instead.")
    parser.add_argument("--json", type=Path, default=None, help="Append the figures to this file.")
    args = parser.parse_args()
    args.seed = random.randrange(10**6) if args.seed is None else args.seed
    print(f"seed {args.seed}", flush=True)
    return args


async def run(args: argparse.Namespace, cluster: Cluster) -> tuple[str, dict[str, Any]]:
    load = LoadGenerator(cluster)
    cluster.restore()
    try:
        if args.cuts:
            return "cuts", await cut_everywhere(cluster, load, all_requests(2 * MAX_TOKENS), args.cuts)
        if args.poison:
            return "poison", await run_beside_poison(cluster, load, all_requests())
        if args.soak:
            return "soak", await soak(cluster, load, all_requests(), args.soak, args.seed)
        return "faults", await run_episodes(planned_episodes(args), cluster, load, args.minutes)
    finally:
        await load.close()


def planned_episodes(args: argparse.Namespace) -> list[Episode]:
    faults = [Fault(name) for name in args.faults.split(",")] if args.faults else FAULTS
    episodes = schedule(args.seed, args.episodes, faults, args.streams)
    return [one for one in episodes if not args.only or one.number in args.only]


async def run_episodes(
    episodes: Sequence[Episode], cluster: Cluster, load: LoadGenerator, minutes: float | None
) -> dict[str, Any]:
    """Runs them one after the other, and restores the cluster after each."""
    requests = all_requests()
    baseline = await load.baseline(requests)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    results: list[EpisodeResult] = []
    for episode in episodes:
        if until is not None and time.monotonic() > until:
            break
        result = await load.run_episode(episode, requests, baseline)
        results.append(result)
        print_result(result)
        await asyncio.to_thread(cluster.restore)
    return {"episodes": len(results), **summary(results)}


def print_result(result: EpisodeResult) -> None:
    times = ", ".join(f"noticed {shown(one.noticed_s)}, resumed {shown(one.resumed_s)}" for one in result.injections)
    print(f"{result.episode}: {result.seconds:.1f} s; {times}; {len(result.wrong)} wrong", flush=True)
    for name, texts in list(result.wrong.items())[:5]:
        print(f"  stream {name}: {'; '.join(texts)[:600]}", flush=True)


def shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    injected = [(one, result) for result in results for one in result.injections]
    samples = [
        {
            "fault": one.injection.fault.value,
            "streams": result.episode.streams,
            "noticed_s": one.noticed_s,
            "resumed_s": one.resumed_s,
        }
        for one, result in injected
    ]
    return {
        "faults": len(injected),
        "streams": sum(result.episode.streams for result in results),
        "lost": sum(result.lost for result in results),
        "changed": sum(len(result.wrong) - result.lost for result in results),
        "by_fault": dict(Counter(one.injection.fault.value for one, _ in injected)),
        **times(samples),
        "samples": samples,
    }


def times(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Percentiles of both times; of `resumed_s` also by the number of streams."""
    found = {name: percentiles([one[name] for one in samples]) for name in ("noticed_s", "resumed_s")}
    by_streams = {
        str(count): percentiles([one["resumed_s"] for one in samples if one["streams"] == count])
        for count in sorted({one["streams"] for one in samples})
    }
    return {**found, "resumed_s_by_streams": by_streams}


def percentiles(values: Sequence[float | None]) -> dict[str, float]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return {}
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(known[min(len(known) - 1, int(share * len(known)))], 3) for name, share in at.items()}


def save(path: Path, mode: str, figures: dict[str, Any]) -> None:
    """Appends a run to the file, and updates the totals over all runs of episodes."""
    before = json.loads(path.read_text()) if path.exists() else {"runs": []}
    command = " ".join(["benchmarks/chaos.py", *sys.argv[1:]])
    runs = [*before["runs"], {"mode": mode, **record(command, figures)}]
    of_faults = [one for one in runs if one["mode"] == "faults"]
    counts = {
        name: sum(one[name] for one in of_faults) for name in ("episodes", "faults", "streams", "lost", "changed")
    }
    by_fault: Counter[str] = Counter()
    for one in of_faults:
        by_fault.update(one["by_fault"])
    total = {**counts, "by_fault": dict(by_fault), **times([s for one in of_faults for s in one["samples"]])}
    path.write_text(json.dumps({"total": total, "runs": runs}, indent=1) + "\n")
    print("written to", path)


if __name__ == "__main__":
    sys.exit(main())
