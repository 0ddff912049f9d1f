"""What two stages add to a round of one row: over gloo and over shared memory, interleaved in one run.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/parallel/stage_link.py [--width 256] [--rounds 1500]

Two processes run the real pipeline with stages that only read memory: 0 MB (an empty stage: the bare round trip), or 20
MB (half of scout's weights for a token: caches are cold, and the other process has gone to sleep). A round's added time
is its own less what its two stages took. Medians and 90th percentiles, in microseconds.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.results import save
from outrider.workers.engine.execution.followers import follow
from outrider.workers.engine.execution.pipeline import FirstStage
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.parallel import groups
from outrider.workers.parallel.links.message import pack, unpack
from outrider.workers.parallel.links.rendezvous import connect_links
from outrider.workers.parallel.links.stage_link import StageLink
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.types.rounds.round import Round, Verdict, ints

CPU = torch.device("cpu")
OVER = ("gloo", "shared memory")
STAGE_MB = (0, 20)
ROUNDS_A_TURN = 50
TIMEOUT_S = 60.0
ONE_ROW = Round(
    round_id=7,
    sequence_ids=ints([3]),
    query_offsets=ints([0, 1]),
    token_ids=ints([11]),
    starts=ints([200]),
    write_from=ints([0]),
    sample_counts=ints([1]),
    next_token_ids=ints([0]),
    block_offsets=ints([0, 13]),
    block_ids=ints(range(13)),
    draft_steps=ints([0]),
    follows=ints([1]),
    followed_from=ints([1]),
)
ITS_VERDICT = Verdict(
    round_id=7,
    token_offsets=ints([0, 1]),
    token_ids=ints([12]),
    accepted_rows=ints([1]),
    drafts_accepted=ints([0]),
    finish=ints([0]),
)


class ReadingStage:
    """Stands for a StageRunner: its layers are `megabytes` of memory, read once a round."""

    def __init__(self, megabytes: int, hidden: Tensor) -> None:
        self._weights = np.ones(megabytes << 17)
        self._hidden = hidden

    def forward(self, round: Round, hidden: Tensor | None) -> tuple[Tensor, float]:
        began = time.perf_counter()
        self._weights.sum()
        return self._hidden if hidden is None else hidden, time.perf_counter() - began


class PromptSampler:
    """Stands for a Sampler that takes no time."""

    def begin(self, round: Round) -> None: ...

    def verify(self, round: Round, hidden: Tensor, took: float) -> tuple[Verdict, Tensor]:
        return replace(ITS_VERDICT, stage_s=np.append(round.stage_s, took)), hidden


def links(rank: int, over: str) -> tuple[StageLink, StageLink]:
    """This rank's incoming and outgoing link. Ranks that name different machines meet over the group."""
    machine = "this one" if over == "shared memory" else f"number {rank}"
    ends = connect_links(rank, Mesh(pipeline=2).routes(), torch.float32, CPU, machine)
    incoming, outgoing = ends[1 - rank, rank], ends[rank, 1 - rank]
    if (incoming.name, outgoing.name) != (over, over):
        raise SystemExit(f"wanted links over {over}, got {incoming.name} and {outgoing.name}")
    return StageLink(incoming, "the other", TIMEOUT_S), StageLink(outgoing, "the other", TIMEOUT_S)


def run(rank: int, port: int, width: int, turns: int) -> dict[tuple[str, int], list[float]]:
    """Both ranks take the arms in the same turns. Seconds added, by transport and stage: on rank 0."""
    groups.join(rank, 2, "127.0.0.1", port, CPU)
    ends = {over: links(rank, over) for over in OVER}
    stages = {size: cast(StageRunner, ReadingStage(size, torch.randn(1, width))) for size in STAGE_MB}
    added: dict[tuple[str, int], list[float]] = {(over, size): [] for size in STAGE_MB for over in OVER}
    for _ in range(turns):
        for over, size in added:
            incoming, outgoing = ends[over]
            if rank == 0:
                added[over, size] += lead(FirstStage(stages[size], 2, outgoing, incoming))
            else:
                follow(stages[size], incoming, outgoing, cast(Sampler, PromptSampler()))
    groups.leave()
    return added


def lead(pipeline: FirstStage) -> list[float]:
    added = []
    for _ in range(ROUNDS_A_TURN):
        began = time.perf_counter()
        pipeline.dispatch(ONE_ROW)
        stage_s = pipeline.collect().verdict.stage_s
        added.append(time.perf_counter() - began - float(stage_s.sum()))
    pipeline.close()
    return added[1:]  # the first also wakes up what the turn before let sleep


def packing() -> dict[str, float]:
    """Medians of packing and of unpacking a round and its verdict, which a round trip does once each."""
    parts: dict[str, Callable[[], object]] = {}
    for name, content in (("round", ONE_ROW), ("verdict", ITS_VERDICT)):
        data = bytearray(pack(content))
        parts[f"pack a {name}"] = lambda content=content: pack(content)  # type: ignore[misc]
        parts[f"unpack a {name}"] = lambda data=data: unpack(data)  # type: ignore[misc]
    return {name: 1e6 * statistics.median(seconds(part) for _ in range(2000)) for name, part in parts.items()}


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def summary(values: Sequence[float]) -> dict[str, float]:
    deciles = statistics.quantiles(values, n=10)
    return {"median": round(1e6 * deciles[4], 1), "p90": round(1e6 * deciles[8], 1)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--follow", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    turns = -(-args.rounds // ROUNDS_A_TURN)
    if args.follow is not None:
        run(1, args.follow, args.width, turns)
        return
    port = free_port()
    other = subprocess.Popen([sys.executable, *sys.argv, "--follow", str(port)], env=os.environ)
    try:
        added = run(0, port, args.width, turns)
        other.wait(TIMEOUT_S)
    finally:
        other.kill()
    report(args.width, args.rounds, added)


def report(width: int, rounds: int, added: dict[tuple[str, int], list[float]]) -> None:
    figures = {f"{over}, stages of {size} MB": summary(values) for (over, size), values in added.items()}
    for name, figure in figures.items():
        print(f"{name:>32}  {figure['median']:7.1f} us   p90 {figure['p90']:7.1f}")
    parts = {name: round(value, 1) for name, value in packing().items()}
    print("of it " + ", ".join(f"{name} {took} us" for name, took in parts.items()))
    command = f"benchmarks/parallel/stage_link.py --width {width} --rounds {rounds}"
    print("written to", save("stage_link", command, {"added_us": figures, "packing_us": parts}))


if __name__ == "__main__":
    main()
