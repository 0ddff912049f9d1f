"""Auto against static depths in simulation, over what scout's texts drafted and what its rounds took (recordings/).

    python benchmarks/speculation/simulated_depths.py [--batch 1,4,16] [--seeds 4] [--varying-speed]

Every kind of text at every batch: the best of the static depths 0..5, and auto over it and over off, the mean over
seeds and the worst. Of the rounds after the first 200 (400 of several sequences); with --varying-speed from the first
round on, on a machine that is slower and faster by itself.
"""

import argparse
import functools
import shlex
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers
from benchmarks.common.results import save
from benchmarks.speculation.simulation import (
    Auto,
    Machine,
    Policy,
    RecordedMachine,
    Simulation,
    Static,
    Text,
    VaryingSpeed,
    recorded_text,
)

RECORDINGS = Path(__file__).with_name("recordings")
KINDS = ("code, T=0.8", "prose, T=0.8", "repetitive, T=0", "adversarial, T=2")
OTHERS = ("code, T=0", "prose, T=0", "chat, T=0.8")
DEPTHS = range(6)


@functools.cache
def recorded_texts(kind: str) -> list[Text]:
    temperature = float(kind.split("=")[1])
    with np.load(RECORDINGS / "scout-texts.npz") as texts:
        return [recorded_text(texts[name], temperature) for name in texts.files if name.startswith(f"{kind}/")]


@functools.cache
def recorded_rounds() -> np.ndarray:
    with np.load(RECORDINGS / "scout-rounds.npz") as rounds:
        return np.concatenate([rounds[name] for name in rounds.files if name != "about"])


@functools.cache
def machine() -> RecordedMachine:
    return RecordedMachine(recorded_rounds())


def settled_speed(policy: Policy, kind: str, batch: int, seed: int = 0) -> float:
    """Tokens a second once what there is to learn is learned."""
    simulation = Simulation(policy, machine(), recorded_texts(kind), seed=seed)
    settled = simulation.run(batch, 200 if batch == 1 else 400)
    tokens, seconds = settled.tokens, settled.seconds
    score = simulation.run(batch, 1200 if batch == 1 else 400)
    return (score.tokens - tokens) / (score.seconds - seconds)


def whole_speed(policy: Policy, on: Machine, kind: str, batch: int, seed: int = 0) -> float:
    """Tokens a second from the first round on: what is lost until something is known counts."""
    rounds = {1: 1500, 4: 700}.get(batch, 400)
    return Simulation(policy, on, recorded_texts(kind), seed=seed).run(batch, rounds).speed


def cell(kind: str, batch: int, seeds: int, *, varying: bool) -> dict[str, Any]:
    if varying:
        statics = [whole_speed(Static(depth), machine(), kind, batch) for depth in DEPTHS]
        autos = [whole_speed(Auto(), VaryingSpeed(machine(), seed), kind, batch, seed) for seed in range(seeds)]
    else:
        statics = [settled_speed(Static(depth), kind, batch) for depth in DEPTHS]
        autos = [settled_speed(Auto(), kind, batch, seed) for seed in range(seeds)]
    best, off = max(statics), statics[0]
    return {
        "kind": kind, "batch": batch, "best_static": statics.index(best), "best_over_off": best / off,
        "auto_over_best": mean(autos) / best, "worst_over_best": min(autos) / best,
        "auto_over_off": mean(autos) / off, "worst_over_off": min(autos) / off,
    }  # fmt: skip


def line(one: dict[str, Any]) -> str:
    return (
        f"{one['kind']}, batch {one['batch']}: depth {one['best_static']} is best, {one['best_over_off']:.2f} of off; "
        f"auto {one['auto_over_best']:.3f} of it (worst {one['worst_over_best']:.3f}), "
        f"{one['auto_over_off']:.3f} of off (worst {one['worst_over_off']:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=numbers, default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--varying-speed", action="store_true", help="of the simulated machine")
    args = parser.parse_args()
    cells = []
    for batch in args.batch:
        for kind in (*KINDS, *OTHERS):
            cells.append(cell(kind, batch, args.seeds, varying=args.varying_speed))
            print(line(cells[-1]), flush=True)
    over_best, over_off = (min(one[name] for one in cells) for name in ("auto_over_best", "auto_over_off"))
    print(f"worst of {len(cells)} cells: {over_best:.3f} of the best static depth, {over_off:.3f} of off")
    name = "simulated-scout-varying-speed" if args.varying_speed else "simulated-scout"
    command = f"benchmarks/speculation/simulated_depths.py {shlex.join(sys.argv[1:])}".strip()
    print("written to", save(name, command, {"seeds": args.seeds, "cells": cells}))


if __name__ == "__main__":
    main()
