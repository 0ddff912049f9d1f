"""Injects faults while many streams run, and counts lost and changed streams and the time to recover.

    python benchmarks/chaos.py [--episodes 60] [--seed 1] [--streams 1,64,512] [--json FILE]
    python benchmarks/chaos.py --nodes         # partitions between machines, and Ray's GCS; needs root
    python benchmarks/chaos.py --in-a-row 5 --pairs 0 --faults "replica drain" --max-tokens 512
    python benchmarks/chaos.py --cuts 2000     # cuts streams after every message
    python benchmarks/chaos.py --poison        # one request that kills every engine, beside 100 others
    python benchmarks/chaos.py --soak 60       # minutes, with a fault every minute

Serves scout on two replicas of two stages behind two gateways. The same seed gives the same schedule of faults. Every
stream must be equal to the output of the same request without faults; the exit status is 1 if one is not.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers
from benchmarks.common.prompts import prompts
from benchmarks.faults.cluster import Cluster
from benchmarks.faults.cuts import cut_everywhere
from benchmarks.faults.figures import save, summary
from benchmarks.faults.load import EpisodeResult, LoadGenerator
from benchmarks.faults.network import ENVIRONMENT, HEAD, Network, created
from benchmarks.faults.nodes import Nodes
from benchmarks.faults.poison import run_beside_poison
from benchmarks.faults.requests import ChaosRequest, chaos_requests
from benchmarks.faults.schedule import FAULTS, NETWORK_FAULTS, Episode, Fault, schedule
from benchmarks.faults.soak import soak

MAX_TOKENS = 32
TEXTS = 4  # prompts of each kind
RANK_MACHINES = [f"node{n}" for n in range(5)]  # for two replicas of two ranks, and one to spare
MACHINES = [HEAD, "gateway0", "gateway1", *RANK_MACHINES]


def all_requests(max_tokens: int = MAX_TOKENS) -> list[ChaosRequest]:
    return chaos_requests([text[:200] for text in prompts("code", TEXTS) + prompts("prose", TEXTS)], max_tokens)


def main() -> int:
    args = arguments()
    if args.replay:
        for episode in planned_episodes(args):
            print(episode)
        return 0
    if args.nodes and ENVIRONMENT not in os.environ:
        return run_in_a_network()
    print(f"seed {args.seed}", flush=True)
    with a_cluster(nodes=args.nodes) as cluster:
        mode, figures = asyncio.run(run(args, cluster))
    print(json.dumps({name: value for name, value in figures.items() if name != "samples"}, indent=1))
    if args.json:
        save(args.json, " ".join(["benchmarks/chaos.py", *sys.argv[1:]]), mode, figures)
    return 1 if figures["lost"] or figures["changed"] else 0


def run_in_a_network() -> int:
    """This command on the head of a network that is there as long as it runs."""
    with created(MACHINES) as network:
        environment = {**os.environ, ENVIRONMENT: network.prefix}
        command = [*network.command_on(HEAD), sys.executable, *sys.argv]
        return subprocess.run(command, env=environment, check=False).returncode


@contextlib.contextmanager
def a_cluster(*, nodes: bool) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        where = Nodes(Network(os.environ[ENVIRONMENT], MACHINES), RANK_MACHINES) if nodes else None
        if where is not None:
            stack.enter_context(contextlib.closing(where))
        yield stack.enter_context(contextlib.closing(Cluster(where)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="Seed of the schedule. [random, and printed]")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=None, help="Start no episode after this many minutes.")
    parser.add_argument("--streams", type=numbers, default=[1, 64, 512], help="Streams per episode.")
    parser.add_argument(
        "--faults", default="", help="Faults to inject, as the schedule prints them, separated by commas. [all]"
    )
    parser.add_argument(
        "--nodes", action="store_true", help="Run each rank and gateway in a network namespace, and cut ways between."
    )
    parser.add_argument("--pairs", type=float, default=0.2, help="Share of the episodes that have two faults.")
    parser.add_argument("--in-a-row", type=int, default=1, help="How often the first fault of an episode is injected.")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="Of each output.")
    parser.add_argument("--replay", action="store_true", help="Print the schedule without running it.")
    parser.add_argument("--only", type=numbers, default=[], help="Run only the episodes with these numbers.")
    parser.add_argument("--cuts", type=int, default=0, help="Cut streams this many times instead of running episodes.")
    parser.add_argument("--poison", action="store_true", help="Run a request that kills every engine instead.")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="Run a soak test instead.")
    parser.add_argument("--json", type=Path, default=None, help="Append the figures to this file.")
    args = parser.parse_args()
    args.seed = random.randrange(10**6) if args.seed is None else args.seed
    return args


async def run(args: argparse.Namespace, cluster: Cluster) -> tuple[str, dict[str, Any]]:
    load = LoadGenerator(cluster)
    cluster.restore()
    try:
        if args.cuts:
            return "cuts", await cut_everywhere(cluster, load, all_requests(2 * MAX_TOKENS), args.cuts, times=100)
        if args.poison:
            return "poison", await run_beside_poison(cluster, load, all_requests())
        if args.soak:
            return "soak", await soak(cluster, load, all_requests(), args.soak, args.seed)
        requests = all_requests(args.max_tokens)
        return "faults", await run_episodes(planned_episodes(args), requests, cluster, load, args.minutes)
    finally:
        await load.close()


def planned_episodes(args: argparse.Namespace) -> list[Episode]:
    faults = (
        [Fault(name) for name in args.faults.split(",")] if args.faults else NETWORK_FAULTS if args.nodes else FAULTS
    )
    episodes = schedule(args.seed, args.episodes, faults, args.streams, pairs=args.pairs, in_a_row=args.in_a_row)
    return [one for one in episodes if not args.only or one.number in args.only]


async def run_episodes(
    episodes: Sequence[Episode],
    requests: Sequence[ChaosRequest],
    cluster: Cluster,
    load: LoadGenerator,
    minutes: float | None,
) -> dict[str, Any]:
    """Runs them one after the other, and restores the cluster after each."""
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


if __name__ == "__main__":
    sys.exit(main())
