"""Checks and times the GPU path on one GPU: python benchmarks/gpu_check.py [--json FILE].

Needs torch, triton, numpy, safetensors, tokenizers, jinja2, grpcio, protobuf, rich and llguidance, but not Ray or
DeepSpeed.

Compares kernels with their twins at R1's shapes for TP8, with their share of the card's memory bandwidth; counts the
launches, host syncs and copies of a decoding round of an R1-like model; times MoE layers over 1 to 64 rows, and the
dispatch of rows to experts that are spread over data groups, without a network; compares graph rounds with eager ones,
and scout's completions with speculation on and off. `--pretend` runs it without a GPU, at small sizes, in Triton's
interpreter and with the twins. It times nothing then; tests use it.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PRETEND = "--pretend" in sys.argv
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
sys.path.append(str(ROOT))  # where `benchmarks` is
if PRETEND:
    os.environ["TRITON_INTERPRET"] = "1"  # before kernels are defined

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu.pretend_cuda import Counts, pretending  # noqa: E402
from gpu.r1 import run_round, sequence_starts, slice_of_r1, small_checkpoint  # noqa: E402
from gpu.spread import Partner  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.kernels.gpu_cases import cases, fp8, random  # noqa: E402
from outrider import LLM, SamplingParams  # noqa: E402
from outrider.cluster.planning.hardware import known_gpus  # noqa: E402
from outrider.kernels.gpu import choose, experts, linear  # noqa: E402
from outrider.workers.drafting.draft_model import DraftRequest  # noqa: E402
from outrider.workers.drafting.gpu_draft_model import GpuDraftModel  # noqa: E402
from outrider.workers.drafting.pairs import Pairs  # noqa: E402
from outrider.workers.model.gpu.stack import Stack, Weight  # noqa: E402
from outrider.workers.parallel.expert_dispatch import AllToAll  # noqa: E402
from outrider.workers.parallel.shard import Shard  # noqa: E402
from outrider.workers.parallel.sharing import Sharing  # noqa: E402

DEVICE = torch.device("cpu" if PRETEND else "cuda")
CUDA = torch.device("cuda", 0)
REPEATS = 20


def error(found: Any, wanted: Any) -> float:
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    moved = [(one.double().cpu(), other.double().cpu()) for one, other in pairs]
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-30)) for one, other in moved)


def seconds(run: Callable[[], Any]) -> float:
    """Device time of one run, the mean of REPEATS."""
    run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(REPEATS):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / REPEATS


def bandwidth() -> float | None:
    """The card's memory bandwidth by its data sheet, in bytes per second."""
    name = torch.cuda.get_device_name() if not PRETEND else ""
    found = [gpu.bandwidth for key, gpu in known_gpus().items() if key.partition("-")[0].upper() in name]
    return found[0] if found else None


def check_kernels() -> list[dict[str, Any]]:
    limit, rows = bandwidth(), []
    for case in cases(DEVICE):
        found, wanted = case.launch(*case.arguments), case.twin(*case.arguments)
        row: dict[str, Any] = {"name": case.name, "error": error(found, wanted), "share_of_limit": None}
        if not PRETEND:
            took = seconds(lambda case=case: case.launch(*case.arguments))
            row |= {"us": took * 1e6, "gb_per_s": case.bytes / took / 1e9}
            row["share_of_limit"] = case.bytes / took / limit if limit else None
        rows.append(row)
    return rows


def check_rounds(folder: Path) -> dict[str, Any]:
    """Counted on a pretended GPU even if there is a real one: the counts are the same.

    Run it in a process of its own: pretending registers functions for CUDA tensors, and torch keeps them until it ends.
    """
    with pretending() as counts:
        checkpoint = small_checkpoint(folder)
        stage, module = slice_of_r1(checkpoint, CUDA, 600)
        counted: dict[Any, Counts] = {n: count(counts, lambda n=n: run_round(stage, n, 4, 100)) for n in (1, 4)}
        apart, _ = slice_of_r1(checkpoint, CUDA, 600, sharing=of_two_data_groups())
        counted["spread"] = count(counts, lambda: run_round(apart, 1, 4, 100))
        stage.use_graphs()
        counted["graph"] = count(counts, lambda: run_round(stage, 1, 4, 100))
        pair, model = one_pair(), GpuDraftModel(module, sequence_starts(1))
        eager = [
            count(counts, lambda n=n: model.draft(pair, DraftRequest(np.arange(1), np.array([n])))) for n in (1, 2)
        ]
        model.use_graphs()
        graph = [
            count(counts, lambda n=n: model.draft(pair, DraftRequest(np.arange(1), np.array([n])))) for n in (2, 3)
        ]
    return {
        "round": {
            **of_round(counted[1]),
            "of_4_sequences": of_round(counted[4]),
            "in_a_graph": of_round(counted["graph"]),
            "of_spread_experts": of_round(counted["spread"]),
        },
        "draft": {
            "launches": eager[1].kinds.total() - eager[0].kinds.total(),
            "launches_in_graphs": graph[1].kinds.total() - graph[0].kinds.total(),
            "call_of_2_drafts": of_round(eager[1]),
            "call_of_2_drafts_in_graphs": of_round(graph[0]),
        },
    }


def count(counts: Counts, run: Callable[[], Any]) -> Counts:
    """Of the second run: the first captures graphs."""
    run()
    counts.clear()
    run()
    return counts.taken()


def of_round(counts: Counts) -> dict[str, Any]:
    """`copies` are between the round's first and last launch; `copies_outside` are the others, by source line."""
    inside = counts.copies_inside
    return {
        "launches": counts.kinds.total(),
        "host_syncs": counts.syncs.total(),
        "copies": len(inside),
        "copies_inside": inside,
        "copies_outside": list((counts.copies - Counter(inside)).elements()),
    }


def one_pair() -> Pairs:
    one = np.zeros(1, dtype=np.int64)
    hidden = torch.randn(1, 256).bfloat16().to(CUDA)
    return Pairs(
        sequence_ids=one, lengths=one + 1, token_ids=one + 7, positions=one + 20, hidden=hidden, write_from=one,
        first_slots=one + 1, tables=(one,),
    )  # fmt: skip


def check_layers() -> list[dict[str, Any]]:
    """Times four MoE layers of one of eight ranks, router and experts, for 1 to 64 rows."""
    if PRETEND:
        return []
    stacks = [(*fp8(DEVICE, 257, 512, 7168), *fp8(DEVICE, 257, 7168, 256), random(DEVICE, 256, 7168)) for _ in range(4)]
    bias, found = torch.zeros(256, device=DEVICE), []
    for rows in (1, 2, 4, 8, 16, 32, 64):
        x = random(DEVICE, rows, 7168)

        def run(x: Tensor = x) -> None:
            for gate_up, gate_up_scale, down, down_scale, router in stacks:
                ids, _ = choose.launch(linear.launch(x, router, None, True), bias, 8, 8, 4, True, 2.5, 1)
                experts.launch(x, ids, gate_up, gate_up_scale, down, down_scale, True)

        found.append({"rows": rows, "ms_per_layer": seconds(run) / 4 * 1e3})
    return found


def of_two_data_groups() -> Sharing:
    """The first of two ranks, over which experts are spread. The other has no rows."""
    return Sharing(shard=Shard(datas=2, spread=True, unit=128), stage=Partner())


def check_dispatch() -> list[dict[str, Any]]:
    """Sends rows to spread experts, without a network: the outputs of this rank's experts, and the time."""
    hidden, width, own, chosen = (256, 128, 4, 2) if PRETEND else (7168, 2048, 16, 8)
    weights = fp8(DEVICE, own, 2 * width, hidden), fp8(DEVICE, own, hidden, width)
    stack = Stack(gate_up=Weight(*weights[0]), down=Weight(*weights[1]))
    dispatch, found = AllToAll(of_two_data_groups(), hidden, 2 * own), []
    for rows in (0, 3) if PRETEND else (0, 1, 4, 16, 64, 2048):
        x, ids = random(DEVICE, rows, hidden), torch.rand(rows, 2 * own, device=DEVICE).argsort(dim=1)[:, :chosen].int()

        def run(x: Tensor = x, ids: Tensor = ids) -> Tensor:
            return dispatch(x, ids, lambda sent, slots: stack(sent, slots.unsqueeze(1), whole=True))

        wanted = stack(x, ids, whole=False).view(rows, chosen, hidden)
        row: dict[str, Any] = {"rows": rows, "error": error(run(), wanted) if rows else 0.0}
        found.append(row if PRETEND else {**row, "us": seconds(run) * 1e6})
    return found


def check_text() -> dict[str, Any]:
    """Compares scout's tokens with speculation off and on, and with graphs and without."""
    settings: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 4, "kv_cache_memory_bytes": 1 << 26}
    settings |= {"device": "cuda", "dtype": "float32" if PRETEND else "bfloat16"}
    params = [SamplingParams(max_tokens=24, temperature=t, seed=7, ignore_eos=True) for t in (0.0, 0.8)]
    said: dict[str, Any] = {}
    with pretending() if PRETEND else contextlib.nullcontext():
        for name, changes in {
            "off": {"speculation": "off"}, "drafts": {"speculation": 3}, "eager": {"enforce_eager": True},
        }.items():  # fmt: skip
            with LLM("scout", **settings, **changes) as llm:
                outputs = llm.generate(["def fibonacci(n):", "The kernel"], params)
            said[name] = [output.outputs[0].token_ids for output in outputs]
    return {"identical": said["off"] == said["drafts"], "graph_equals_eager": said["drafts"] == said["eager"]}


def show(report: dict[str, Any]) -> None:
    print(f"{'kernel':44}{'error':>10}{'us':>10}{'GB/s':>10}{'of limit':>10}")
    for row in report["kernels"]:
        rest = [row.get("us"), row.get("gb_per_s"), row["share_of_limit"]]
        shown = "".join(f"{'-' if each is None else format(each, '.3g'):>10}" for each in rest)
        print(f"{row['name']:44}{row['error']:>10.1e}{shown}")
    for row in report["layers"]:
        print(f"MoE layer, {row['rows']:>2} rows: {row['ms_per_layer']:.3f} ms")
    for row in report["dispatch"]:
        took = "" if PRETEND else f", {row['us']:.0f} us"
        print(f"dispatch to spread experts, {row['rows']:>4} rows: error {row['error']:.1e}{took}")
    round, draft = report["round"], report["draft"]
    counted = {
        "round of 1 sequence, 4 rows": round,
        "the same in a graph": round["in_a_graph"],
        "round of 4 sequences, 4 rows each": round["of_4_sequences"],
        "round of 4 rows, experts spread": round["of_spread_experts"],
        "drafter's call, 2 drafts": draft["call_of_2_drafts"],
        "the same in graphs": draft["call_of_2_drafts_in_graphs"],
    }
    print(f"{'':44}{'launches':>10}{'syncs':>10}{'copies':>10}  outside, not counted")
    for name, each in counted.items():
        shown = "".join(f"{each[key]:>10}" for key in ("launches", "host_syncs", "copies"))
        print(f"{name:44}{shown}  {', '.join(each['copies_outside'])}")
        for copy, times in Counter(each["copies_inside"]).items():
            print(f"{f'{times} between launches: {copy}':>86}")
    print(f"one more draft: {draft['launches']} launches; in graphs {draft['launches_in_graphs']}")
    for name in ("device", "identical", "graph_equals_eager"):
        print(f"{name}: {report[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretend", action="store_true", help="run without a GPU, at small sizes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.manual_seed(0)
    report: dict[str, Any] = {"device": "pretended" if PRETEND else torch.cuda.get_device_name()}
    own_process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, own_process:
        report |= own_process.submit(check_rounds, Path(folder)).result()
    report |= {"kernels": check_kernels(), "layers": check_layers(), "dispatch": check_dispatch(), **check_text()}
    show(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
