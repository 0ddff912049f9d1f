"""What two lanes of a stage bring, where ranks exchange over a link that takes its time.

    sudo python benchmarks/parallel/lane_overlap.py [--model scout] [--layers 4] [--delays-ms 0.2,1,3]
        [--splits TP2,DP2+EP2] [--repeats N]

Two ranks in two network namespaces of this machine, gloo over TCP between them, each packet held back for the delay
(delayed_link.py); they run the model's first layers. Rounds of several kinds go in turns as one lane and as
two: the fastest fifth of rounds and the median, on the slower rank, and how long it waited in exchanges. All states
must have the same bits. Ranks, gloo's threads and the link share this machine's cores, which a cluster's ranks would
not: what two lanes cost more in computing counts here twice. Writes results/overlap_MODEL.json.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import words
from benchmarks.common.repeats import median
from benchmarks.common.results import save
from benchmarks.parallel.delayed_link import DelayedLink
from benchmarks.parallel.ranks import environment, printed_by
from benchmarks.reporting.tables import Table

SPLITS = {"TP2": (1, 2, 1), "TP2+EP2": (1, 2, 2), "DP2+EP2": (2, 1, 2)}  # data, tensor, experts
# Of all data groups: sequences, rows of each, tokens that each has in its cache.
ROUNDS = {
    "decode 16 x 1": (16, 1, 128),
    "verify 16 x 4": (16, 4, 128),
    "verify 64 x 4": (64, 4, 128),
    "prompts 4 x 128": (4, 128, 0),
}
BLOCK_SIZE = 16
LIMIT_S = 500.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="its name, or a checkpoint's folder")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--delays-ms", type=_delays, default=[0.2, 1, 3])
    parser.add_argument("--splits", type=words, default=["TP2", "DP2+EP2"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rank", help=argparse.SUPPRESS)  # a rank's own process: RANK SPLIT
    args = parser.parse_args()
    if args.rank:
        rank, split = args.rank.split()
        _be_a_rank(int(rank), split, args)
        return
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    found = {
        split: {f"{delay_ms:g}": measure(split, delay_ms, sys.argv[1:]) for delay_ms in args.delays_ms}
        for split in args.splits
    }
    print(table(found).markdown())
    name = Path(args.model).name
    command = f"benchmarks/parallel/lane_overlap.py --model {name} --layers {args.layers} --repeats {args.repeats}"
    print(save(f"overlap_{name}", command, {"model": name, "delay_ms_one_way": found}))


def _delays(text: str) -> list[float]:
    return [float(each) for each in words(text)]


def table(found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    rows = [
        [split, delay, kind, *(f"{lanes[n]['fast_ms']:.1f} ({lanes[n]['exchange_ms']:.1f})" for n in ("1", "2")),
         f"{lanes['1']['fast_ms'] / lanes['2']['fast_ms']:.2f}"]
        for split, delays in found.items()
        for delay, kinds in delays.items()
        for kind, lanes in kinds.items()
    ]  # fmt: skip
    return Table(["split", "delay, ms", "round", "one lane, ms (in exchanges)", "two lanes", "times faster"], rows)


def measure(split: str, delay_ms: float, options: list[str]) -> dict[str, Any]:
    """By kind of round and number of lanes, on the slower rank. Ranks have the command's own `options`."""
    with DelayedLink(delay_ms / 1000) as link:
        command = [sys.executable, __file__, *options, "--rank"]
        commands = [[*link.inside(rank), *command, f"{rank} {split}"] for rank in (0, 1)]
        env = environment(GLOO_SOCKET_IFNAME=link.interface)
        said = [json.loads(printed) for printed in printed_by(commands, env, LIMIT_S)]
    if not all(rank["same_bits"] for rank in said):
        raise RuntimeError("two lanes have other bits than one")
    return {kind: {n: _slower([rank["rounds"][kind][n] for rank in said]) for n in ("1", "2")} for kind in ROUNDS}


def _slower(ranks: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(max(rank[name] for rank in ranks), 2) for name in ranks[0]}


def _be_a_rank(rank: int, split: str, args: argparse.Namespace) -> None:
    from benchmarks.parallel.lane_overlap_rank import OverlapRank

    there = OverlapRank(rank, args.model, args.layers, SPLITS[split], DelayedLink.addresses[0])
    rounds = {}
    for kind, shape in ROUNDS.items():
        seen = there.timed(*shape, BLOCK_SIZE, args.repeats)
        rounds[kind] = {
            str(lanes): {
                "fast_ms": 1000 * sorted(each.seconds for each in spans)[len(spans) // 5],
                "median_ms": 1000 * median([each.seconds for each in spans]),
                "exchange_ms": 1000 * median([each.exchange_s for each in spans]),
            }
            for lanes, spans in seen.items()
        }
    sys.stdout.write(json.dumps({"rounds": rounds, "same_bits": there.same_bits}))
    there.leave()


if __name__ == "__main__":
    main()
