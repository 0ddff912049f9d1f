"""What ranks of one machine could exchange through: our shared memory, gloo, and DeepSpeed's shared memory.

    python benchmarks/parallel/collectives.py [--ranks 2,4] [--turns N]

The same gather by each, for sizes of a decoded row's slice, of several rows' and of a prompt's: the tenth percentile of
a turn and the median, on the slowest rank, carriers in turns. Where a machine has other work, the median is of waiting.
DeepSpeed has no gather, only an all-reduce (`inference_all_reduce_`): a sum of slices that are zero but for one is
exact, and is a gather. Its op is compiled once (g++, ninja, about a minute) into build/deepspeed; where that fails, or
its ranks do not come to an end, the result says so and the others are measured alone. Why it is not what ranks use: it
adds floats only, so integers and mixed bytes cannot travel; it has one group for all ranks; who waits spins, and for
ever; a killed rank leaves its segment in /dev/shm (removed here afterwards). Writes results/collectives.json.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers
from benchmarks.common.results import ROOT, save
from benchmarks.parallel.ranks import environment, printed_by
from benchmarks.reporting.tables import Table

SIZES = (512, 4096, 16384, 262144)  # bytes that a rank gives: a row's slice of scout's hidden states, and more
EXTENSIONS = ROOT / "build" / "deepspeed"  # this benchmark's alone
BUILD_LIMIT_S = 300.0
LIMIT_S = 120.0  # for all ranks together: DeepSpeed's have no deadline of their own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=numbers, default=[2, 4])
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--rank", help=argparse.SUPPRESS)  # a rank's own process: RANK RANKS PORT DEEPSPEED
    args = parser.parse_args()
    if args.rank:
        _be_a_rank(*map(int, args.rank.split()), turns=args.turns)
        return
    reason = deepspeed_missing()
    found, late = {}, []
    for ranks in args.ranks:
        try:
            found[str(ranks)] = measure(ranks, args.turns, reason is None)
        except subprocess.TimeoutExpired:  # of DeepSpeed's: all others have a deadline of their own
            late.append(ranks)
            found[str(ranks)] = measure(ranks, args.turns, deepspeed=False)
    rows = [
        [ranks, carrier, *(" / ".join(f"{each:.0f}" for each in us[str(size)]) for size in SIZES)]
        for ranks, carriers in found.items()
        for carrier, us in carriers.items()
    ]
    print(Table(["ranks", "carrier", *(f"{size} bytes" for size in SIZES)], rows).markdown())
    command = f"benchmarks/parallel/collectives.py --ranks {','.join(map(str, args.ranks))} --turns {args.turns}"
    print(
        save("collectives", command, {"gather_us": found, "deepspeed_missing": reason, "deepspeed_not_in_time": late})
    )


def deepspeed_missing() -> str | None:
    """Why DeepSpeed's op cannot be had here; None if it can. Compiles it the first time."""
    for lock in EXTENSIONS.glob("*/lock"):  # of a build that was killed: the next one would wait for it for ever
        lock.unlink()
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from benchmarks.parallel import collectives; collectives.deepspeed_op()"],
            capture_output=True, text=True, env=_environment(1, 0), timeout=BUILD_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its op was not compiled within {BUILD_LIMIT_S:g} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]


def measure(ranks: int, turns: int, deepspeed: bool) -> dict[str, dict[str, list[float]]]:
    """Microseconds of a gather, by carrier and size: of the fastest tenth of turns, and of the median one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--turns", str(turns), "--rank"]
    commands = [[*command, f"{rank} {ranks} {port} {int(deepspeed)}"] for rank in range(ranks)]
    try:
        said = [json.loads(printed) for printed in printed_by(commands, _environment(ranks, port), LIMIT_S)]
    finally:
        _remove_segments(port)
    return {
        carrier: {
            size: [round(max(values), 1) for values in zip(*(rank[carrier][size] for rank in said), strict=True)]
            for size in said[0][carrier]
        }
        for carrier in said[0]
    }


def deepspeed_op() -> Any:
    """DeepSpeed's module, and with it torch.ops.deepspeed."""
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder  # type: ignore[import-untyped]

    return ShareMemCommBuilder().load(verbose=False)


def _environment(ranks: int, port: int) -> dict[str, str]:
    """As launchers set it: DeepSpeed reads where it is from the environment."""
    return environment(
        DS_ACCELERATOR="cpu",
        TORCH_EXTENSIONS_DIR=str(EXTENSIONS),
        LOCAL_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # ninja's
    )


def _be_a_rank(rank: int, ranks: int, port: int, deepspeed: int, *, turns: int) -> None:
    import torch

    from outrider.workers.parallel import groups
    from outrider.workers.parallel.collectives.group_collectives import GroupCollectives, new_group
    from outrider.workers.parallel.collectives.group_rendezvous import connect_groups
    from outrider.workers.parallel.mesh import Mesh

    torch.set_num_threads(1)
    groups.join(rank, ranks, "127.0.0.1", port, torch.device("cpu"))
    mesh = Mesh(tensor=ranks)
    ours = connect_groups(rank, mesh, torch.device("cpu"), "here", 60.0, str)[mesh.tensor_group(rank)]
    gloo = GroupCollectives(new_group(range(ranks)), "all", 60.0)
    carriers: dict[str, Callable[[Any], Any]] = {
        f"ours ({ours.name})": lambda part: ours.gather(part, "heads"),
        "gloo": lambda part: gloo.gather(part, "heads"),
    }
    if deepspeed:
        deepspeed_op().initialize(ranks, rank)
        carriers["DeepSpeed"] = _gather_by_sum(rank, ranks)
    found: dict[str, dict[int, list[float]]] = {name: {} for name in carriers}
    for size in SIZES:
        part = torch.full((size // 4,), float(rank + 1))
        taken: dict[str, list[float]] = {name: [] for name in carriers}
        for turn in range(turns + 5):
            for name, gather in carriers.items():
                began = time.perf_counter()
                whole = gather(part)
                if turn >= 5:
                    taken[name].append(time.perf_counter() - began)
                assert float(whole.view(ranks, -1)[:, -1].sum()) == ranks * (ranks + 1) / 2, f"{name} lost a part"
        for name, seconds in taken.items():
            found[name][size] = (1e6 * np.percentile(seconds, (10, 50))).tolist()
    print(json.dumps(found), flush=True)
    os._exit(0)  # DeepSpeed's destructors are not needed


def _gather_by_sum(rank: int, ranks: int) -> Callable[[Any], Any]:
    import torch

    def gather(part: Any) -> Any:
        whole = torch.zeros(ranks, len(part))
        whole[rank] = part
        return torch.ops.deepspeed.inference_all_reduce_(whole)

    return gather


def _remove_segments(port: int) -> None:
    """What DeepSpeed's ranks of this run leave behind."""
    for segment in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):
        segment.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
