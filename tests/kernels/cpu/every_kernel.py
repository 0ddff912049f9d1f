"""Runs every compiled kernel on inputs that are the same each time, and saves what comes out.

    python every_kernel.py CHECKPOINT OUT.npz

The instruction set is what OUTRIDER_CPU_ISA says: this is what test_instruction_sets compares.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rounds import WEIGHTS, CompiledModel, Rows, make_pairs, random_tokens, slots_of
from torch import Tensor

from outrider.kernels.cpu.context import DRAW, Context
from outrider.kernels.cpu.library import ROUNDED
from outrider.kernels.cpu.packing import Arena, kind_of, packed
from outrider.workers.drafting.pairs import pair_rows

LENGTH = 600


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def draws(count: int) -> NDArray[np.void]:
    """A mixture of every transform."""
    out = np.zeros(count, dtype=DRAW)
    rows = np.arange(count)
    out["sequence_key"], out["position"] = rows * 12345, rows + 3
    out["temperature"], out["min_p"] = (rows % 4) * 0.5, (rows % 3) * 0.02
    out["top_k"], out["top_p"] = (rows % 5) * 7, 1 - (rows % 2) * 0.1
    return out


def linears(context: Context) -> dict[str, Tensor]:
    arena, found = Arena(), {}
    kinds = {name: kind_of(own.get("dtype", torch.float32), own.get("quantization")) for name, own in WEIGHTS.items()}
    for name, kind in {**kinds, "rounded": ROUNDED}.items():
        for outputs, inputs in ((33, 129), (64, 2500), (31, 1)):
            linear = packed(arena, drawn(outputs, inputs), kind)
            for rows in (1, 2, 3, 5, 20):
                found[f"{name} {outputs} {inputs} {rows}"] = context.linear(linear, drawn(rows, inputs, seed=1))
    return found


def model(path: Path, name: str) -> dict[str, Tensor]:
    """States, logits, cache, and the drafts after them."""
    own = CompiledModel.load(path, drafts=True, threads=2, **WEIGHTS[name])
    tokens, blocks = random_tokens(LENGTH, 97, 0), range(40)
    states = own.hidden(Rows(tokens, 0, blocks), Rows(tokens[:3], 0, [50]))
    assert own.module is not None
    pairs = make_pairs(states[: LENGTH - 1], tokens, 0, blocks)
    drafts, leads, _ = own.module.draft(pair_rows(pairs), pairs.hidden, pairs.last_rows, np.array([6]), draws(3)[2:])
    return {
        f"{name} states": states,
        f"{name} logits": own.logits(states[::50]),
        f"{name} cache": own.cached(slots_of(blocks, LENGTH)[::7]),
        f"{name} pairs": own.cached_pairs(slots_of(blocks, LENGTH + 5)[1::7]),
        f"{name} drafts": torch.from_numpy(drafts),
        f"{name} leads": torch.from_numpy(leads),
    }


def main(path: Path, out: Path) -> None:
    context = Context(2)
    found = linears(context)
    for name in WEIGHTS:
        found |= model(path, name)
    for vocab in (5, 65, 3000):
        found[f"tokens {vocab}"] = torch.from_numpy(context.draw(drawn(60, vocab, seed=vocab) * 3, draws(60)))
    np.savez(out, **{name: tensor.numpy() for name, tensor in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
