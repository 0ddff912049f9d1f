"""Faults in the middle of many streams: what was lost, what was changed, and how long it took.

    .venv/bin/python benchmarks/chaos.py [--episodes 60] [--seed 1] [--streams 1,64,512] [--json FILE]
    .venv/bin/python benchmarks/chaos.py --cuts 2000     # the stream cut after every message
    .venv/bin/python benchmarks/chaos.py --poison        # one request that kills every engine, and 100 beside it
    .venv/bin/python benchmarks/chaos.py --soak 60       # minutes, with a fault in each

Serves scout on two replicas of two stages behind two gateways. The same seed gives the same schedule of faults. Every
stream must be equal to what the same request said undisturbed. Exits 1 if any is not.
"""

import argparse
import asyncio
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
from faults.crowd import Crowd, Result
from faults.cuts import cut_everywhere
from faults.poison import beside_poison
from faults.questions import questions
from faults.schedule import Episode, Fault, schedule
from faults.soak import soak
from faults.strikes import FAULTS

MAX_TOKENS = 32
TEXTS = 4  # prompts of each kind


def all_questions(max_tokens: int = MAX_TOKENS) -> list[Any]:
    return questions([text[:200] for text in prompts("code", TEXTS) + prompts("prose", TEXTS)], max_tokens)


def main() -> int:
    args = arguments()
    if args.replay:
        for episode in planned(args):
            print(episode)
        return 0
    with Cluster() as cluster:
        mode, figures = asyncio.run(run(args, cluster))
    print(json.dumps({name: value for name, value in figures.items() if name != "samples"}, indent=1))
    if args.json:
        keep(args.json, mode, figures)
    return 1 if figures["lost"] or figures["changed"] else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="Of the schedule; drawn and printed if absent.")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=None, help="Begin no episode after so long.")
    parser.add_argument("--streams", type=numbers, default=[1, 64, 512])
    parser.add_argument("--faults", default="", help="Some of them, as the schedule names them, with commas.")
    parser.add_argument("--replay", action="store_true", help="Print the schedule, and do nothing.")
    parser.add_argument("--only", type=numbers, default=[], help="These episodes of the schedule.")
    parser.add_argument("--cuts", type=int, default=0)
    parser.add_argument("--poison", action="store_true")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--json", type=Path, default=None, help="Add the figures to this file.")
    args = parser.parse_args()
    args.seed = random.randrange(10**6) if args.seed is None else args.seed
    print(f"seed {args.seed}", flush=True)
    return args


async def run(args: argparse.Namespace, cluster: Cluster) -> tuple[str, dict[str, Any]]:
    crowd = Crowd(cluster)
    cluster.mend()
    try:
        if args.cuts:
            return "cuts", await cut_everywhere(cluster, crowd, all_questions(2 * MAX_TOKENS), args.cuts)
        if args.poison:
            return "poison", await beside_poison(cluster, crowd, all_questions())
        if args.soak:
            return "soak", await soak(cluster, crowd, all_questions(), args.soak, args.seed)
        return "faults", await through(planned(args), cluster, crowd, args.minutes)
    finally:
        await crowd.close()


def planned(args: argparse.Namespace) -> list[Episode]:
    faults = [Fault(name) for name in args.faults.split(",")] if args.faults else FAULTS
    episodes = schedule(args.seed, args.episodes, faults, args.streams)
    return [one for one in episodes if not args.only or one.number in args.only]


async def through(episodes: Sequence[Episode], cluster: Cluster, crowd: Crowd, minutes: float | None) -> dict[str, Any]:
    """All of them, one after the other, each on a cluster that is whole."""
    asked = all_questions()
    twins = await crowd.answers(asked)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    results: list[Result] = []
    for episode in episodes:
        if until is not None and time.monotonic() > until:
            break
        result = await crowd.live_through(episode, asked, twins)
        results.append(result)
        tell(result)
        await asyncio.to_thread(cluster.mend)
    return {"episodes": len(results), **summary(results)}


def tell(result: Result) -> None:
    times = ", ".join(f"noticed {shown(one.noticed_s)}, resumed {shown(one.resumed_s)}" for one in result.struck)
    print(f"{result.episode}: {result.seconds:.1f} s; {times}; {len(result.wrong)} wrong", flush=True)
    for name, texts in list(result.wrong.items())[:5]:
        print(f"  stream {name}: {'; '.join(texts)[:600]}", flush=True)


def shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def summary(results: Sequence[Result]) -> dict[str, Any]:
    struck = [(one, result) for result in results for one in result.struck]
    samples = [
        {
            "fault": one.blow.fault.value,
            "streams": result.episode.streams,
            "noticed_s": one.noticed_s,
            "resumed_s": one.resumed_s,
        }
        for one, result in struck
    ]
    return {
        "faults": len(struck),
        "streams": sum(result.episode.streams for result in results),
        "lost": sum(result.lost for result in results),
        "changed": sum(len(result.wrong) - result.lost for result in results),
        "by_fault": dict(Counter(one.blow.fault.value for one, _ in struck)),
        **times(samples),
        "samples": samples,
    }


def times(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Percentiles of what was measured, `resumed` also by the number of streams."""
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


def keep(path: Path, mode: str, figures: dict[str, Any]) -> None:
    """Adds a run to a file of runs, with the sums over those of faults."""
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
