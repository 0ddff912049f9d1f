"""Expert placement against EPLB's algorithm: how even, how fast, how much moves.

    python benchmarks/parallel/expert_placement.py [--layers N] [--repeats N] [--eplb-file eplb.py]

256 experts on 32 GPUs of 4 nodes with 32 redundant experts, loads by Zipf's law dealt to experts at random in each
layer; and scout's own loads, recorded while it continues code and prose, on 4 ranks with 4 redundant experts. EPLB is
tests/eplb.py, written anew in plain Python from its description; with --eplb-file also the original's own file
(github.com/deepseek-ai/EPLB), which loops in the same way over tensors. Timings are interleaved, in one process, on one
thread. Writes results/experts.json.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.prompts import prompts
from benchmarks.common.repeats import interleaved, median, seconds
from benchmarks.common.results import ROOT, save
from benchmarks.reporting.tables import Table
from outrider.workers.experts.packing import FloatArray
from outrider.workers.experts.placement import ExpertPlacement
from outrider.workers.experts.placing import ExpertLayout, imbalance, place_experts

EXPONENTS = (0.3, 0.6, 1.0)
LAYOUTS = {
    "hierarchical": ExpertLayout(experts=256, ranks=32, redundant_experts=32, nodes=4, groups=8),
    "global": ExpertLayout(experts=256, ranks=32, redundant_experts=32),
}
SCOUT = ExpertLayout(experts=8, ranks=4, redundant_experts=4)
DRIFT = 0.1


def reference() -> ModuleType:
    """The tests' EPLB."""
    sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module("eplb")


def zipf(exponent: float, layers: int, seed: int = 0) -> FloatArray:
    random = np.random.default_rng(seed)
    loads = 1e6 / np.arange(1, 257) ** exponent
    return np.stack([random.permutation(loads) for _ in range(layers)])


def scout_loads() -> FloatArray:
    """How many rows each of scout's experts took, layer by layer, in one process in PyTorch."""
    from torch import Tensor, nn
    from torch.nn.modules.module import register_module_forward_hook

    from outrider import LLM, SamplingParams
    from outrider.workers.model.moe import Router

    layers: dict[nn.Module, int] = {}
    loads = np.zeros((11, SCOUT.experts))

    def count(module: nn.Module, _: object, output: tuple[Tensor, Tensor]) -> None:
        if isinstance(module, Router):
            chosen = np.bincount(output[0].flatten().numpy(), minlength=SCOUT.experts)
            loads[layers.setdefault(module, len(layers))] += chosen

    hook = register_module_forward_hook(count)  # type: ignore[arg-type]
    texts = [*prompts("code", 4), *prompts("prose", 4)]
    with LLM("scout", kernels="torch", speculation="off", kv_cache_memory_bytes=64 << 20) as llm:
        llm.generate(texts, SamplingParams(temperature=0.8, seed=0, max_tokens=64, ignore_eos=True))
    hook.remove()
    return loads


def by_eplb(eplb: ModuleType, loads: FloatArray, layout: ExpertLayout) -> Callable[[], Any]:
    rows = loads.tolist()
    return lambda: eplb.rebalance(rows, slots=layout.slots, groups=layout.groups, nodes=layout.nodes, gpus=layout.ranks)


def by_original(path: Path, loads: FloatArray, layout: ExpertLayout) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("eplb_original", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights = torch.tensor(loads)
    groups = layout.groups if layout.groups > 1 else 3  # what nodes do not divide is placed globally
    return lambda: module.rebalance_experts(weights, layout.slots, groups, max(layout.nodes, 2), layout.ranks)


def compare(
    eplb: ModuleType, loads: FloatArray, layout: ExpertLayout, repeats: int, original: Path | None
) -> dict[str, float]:
    theirs, copies = by_eplb(eplb, loads, layout)()
    uneven = [eplb.imbalance(*layer) for layer in zip(loads.tolist(), theirs, copies, strict=True)]
    before = place_experts(loads, layout)
    drifted = loads * np.random.default_rng(1).uniform(1 - DRIFT, 1 + DRIFT, loads.shape)
    fresh, kept = place_experts(drifted, layout), place_experts(drifted, layout, before)
    arms = {"ours": lambda: place_experts(loads, layout), "eplb": by_eplb(eplb, loads, layout)}
    if original is not None:
        arms["original"] = by_original(original, loads, layout)
    times = interleaved({name: lambda run=run: seconds(run) for name, run in arms.items()}, repeats)
    again = [seconds(lambda: place_experts(drifted, layout, before)) for _ in range(repeats)]
    return {
        "ours_mean": float(imbalance(loads, before).mean()),
        "eplb_mean": float(np.mean(uneven)),
        "ours_most": float(imbalance(loads, before).max()),
        "eplb_most": max(uneven),
        "ours_ms": median(times["ours"]) * 1e3,
        "eplb_ms": median(times["eplb"]) * 1e3,
        **({"original_ms": median(times["original"]) * 1e3} if original is not None else {}),
        "times_faster": median(times["original" if original is not None else "eplb"]) / median(times["ours"]),
        "drifted_fresh": float(imbalance(drifted, fresh).max()),
        "drifted_kept": float(imbalance(drifted, kept).max()),
        "drifted_unmoved": float(imbalance(drifted, before).max()),
        "moves_fresh": fresh.moves_from(before),
        "moves_eplb": eplb_moves(eplb, drifted, layout, before),
        "moves_kept": kept.moves_from(before),
        "kept_ms": median(again) * 1e3,
    }


def eplb_moves(eplb: ModuleType, loads: FloatArray, layout: ExpertLayout, before: ExpertPlacement) -> int:
    """What EPLB's fresh placement would have GPUs fetch."""
    placed, _ = by_eplb(eplb, loads, layout)()
    held = before.held()
    return sum(
        len({expert for expert in experts if not held[layer, gpu, expert]})
        for layer, gpus in enumerate(placed)
        for gpu, experts in enumerate(gpus)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--eplb-file", type=Path, help="the original's eplb.py, to be timed too")
    options = parser.parse_args()
    eplb = reference()
    cases = {
        f"{kind}, Zipf {exponent}": (zipf(exponent, options.layers), layout)
        for kind, layout in LAYOUTS.items()
        for exponent in EXPONENTS
    }
    cases["scout's own"] = (scout_loads(), SCOUT)
    figures = {
        name: compare(eplb, loads, layout, options.repeats, options.eplb_file)
        for name, (loads, layout) in cases.items()
    }
    rows = [[name, *(f"{value:.4g}" for value in found.values())] for name, found in figures.items()]
    print(Table(["loads", *figures["scout's own"]], rows).markdown())
    command = f"benchmarks/parallel/expert_placement.py --layers {options.layers} --repeats {options.repeats}"
    command += " --eplb-file eplb.py" if options.eplb_file else ""
    print(save("experts", command, {"layers": options.layers, "repeats": options.repeats, "placements": figures}))


if __name__ == "__main__":
    main()
