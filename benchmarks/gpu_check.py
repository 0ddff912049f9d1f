"""Checks and times the GPU path on one GPU: python benchmarks/gpu_check.py [--json FILE]. Needs torch and triton.

Compares kernels with their twins at R1's shapes for TP8, with their share of the card's memory bandwidth; counts the
launches, host syncs and copies of a decoding round of an R1-like model; times MoE layers over 1 to 64 rows; compares
graph rounds with eager ones, and scout's completions with speculation on and off. `--pretend` runs it without a GPU,
at small sizes, in Triton's interpreter and with the twins. It times nothing then; tests use it.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRETEND = "--pretend" in sys.argv
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
if PRETEND:
    os.environ["TRITON_INTERPRET"] = "1"  # before kernels are defined

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu.pretend_cuda import Counts, pretending  # noqa: E402
from gpu.r1 import run_round, sequence_starts, slice_of_r1, small_checkpoint  # noqa: E402
from torch import Tensor  # noqa: E402

from outrider import LLM, SamplingParams  # noqa: E402
from outrider.cluster.planning.hardware import known_gpus  # noqa: E402
from outrider.kernels import reference  # noqa: E402
from outrider.kernels.gpu import choose, draw, experts, linear, mla, norms, values  # noqa: E402
from outrider.kernels.sampling import row_key, sequence_key  # noqa: E402
from outrider.workers.drafting.draft_model import DraftRequest  # noqa: E402
from outrider.workers.drafting.gpu_draft_model import GpuDraftModel  # noqa: E402
from outrider.workers.drafting.pairs import Pairs  # noqa: E402

DEVICE = torch.device("cpu" if PRETEND else "cuda")
CUDA = torch.device("cuda", 0)
REPEATS = 20


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel, its twin, their arguments, and the bytes that the kernel must read."""

    name: str
    launch: Callable[..., Any]
    twin: Callable[..., Any]
    arguments: tuple[Any, ...]
    bytes: int


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(torch.float32 if PRETEND else dtype)


def fp8(*shape: int) -> tuple[Tensor, Tensor]:
    *stacked, outputs, inputs = shape
    scales = torch.rand(*stacked, -(-outputs // 128), -(-inputs // 128), device=DEVICE) * inputs**-0.5
    values = torch.empty(shape, dtype=torch.float8_e4m3fn, device=DEVICE)
    for each in values.view(-1, outputs, inputs):
        each.copy_(torch.randn(outputs, inputs, device=DEVICE))
    return values, scales


def cases() -> Iterator[Case]:
    """R1's shapes for TP8; smaller ones with --pretend."""
    hidden, many, width, stack = (512, 128, 128, 4) if PRETEND else (7168, 2112, 256, 257)
    for rows in (1, 4, 64):
        weight = fp8(many, hidden)
        arguments = (random(rows, hidden), *weight, False)
        yield Case(f"linear, {rows} rows", linear.launch, reference.linear, arguments, weight[0].numel())
    gate_up, down = fp8(stack, 2 * width, hidden), fp8(stack, hidden, width)
    for rows in (1, 4) if PRETEND else (1, 4, 16, 64):
        ids = torch.rand(rows, stack, device=DEVICE).argsort(dim=1)[:, : min(9, stack)].sort(dim=1).values.int()
        each = 3 * hidden * width * len(ids.unique())
        arguments = (random(rows, hidden), ids, *gate_up, *down, True)
        yield Case(f"experts, {rows} rows", experts.launch, reference.experts, arguments, each)
    yield from attention_cases()
    logits, bias = torch.randn(64, 256, device=DEVICE), torch.randn(256, device=DEVICE)
    yield Case("choose", choose.launch, reference.choose, (logits, bias, 8, 8, 4, True, 2.5, 1), logits.numel() * 4)
    arguments = (random(4, hidden), random(36, hidden), torch.rand(4, 9, device=DEVICE), random(hidden), 1e-6)
    yield Case("join_norm", norms.launch_join_norm, reference.join_norm, arguments, 40 * hidden * 2)
    vocab = 2000 if PRETEND else 129280
    keys = torch.tensor([row_key(sequence_key(n, 0), 5) for n in range(4)], device=DEVICE)
    arguments = (torch.randn(4, vocab, device=DEVICE), torch.full((4,), 0.7, device=DEVICE).double(), keys, 0)
    yield Case("draw", draw.launch, reference.draw, arguments, 4 * vocab * 4)


def attention_cases() -> Iterator[Case]:
    for rows, context in ((1, 100), (4, 200)) if PRETEND else ((1, 4096), (4, 4096), (4, 32768)):
        pages = torch.randperm(-(-context // 64), device=DEVICE).int()[None]
        seen = torch.tensor([[0, context - rows + 1 + n] for n in range(rows)], dtype=torch.int32, device=DEVICE)
        tiles = torch.tensor([[0, 0, rows]], dtype=torch.int32, device=DEVICE)
        q, cache, up = random(rows, 16, 576), random(pages.numel() * 64, 576), random(16, 512, 128) / 20
        rest = tiles, pages, seen, 64, 512, 0.04, -(-context // mla.SPLIT)

        def launch(*arguments: Any, seen: Tensor = seen, up: Tensor = up) -> Tensor:
            return values.launch(*mla.launch(*arguments), seen, up)

        def twin(*arguments: Any, seen: Tensor = seen, up: Tensor = up) -> Tensor:
            moved = [each.cpu() if isinstance(each, Tensor) else each for each in arguments]
            return reference.values(*reference.mla(*moved), seen.cpu(), up.cpu())

        for name, own in (("attention", cache), ("attention, FP8 cache", in_fp8(cache))):
            bytes_read = own.numel() * own.element_size()
            yield Case(f"{name}, {rows} rows, context {context}", launch, twin, (q, own, *rest), bytes_read)


def in_fp8(cache: Tensor) -> Tensor:
    """[slots, 576] as kv_cache_dtype="fp8" keeps them."""
    parts = (*reference.quantize_rows(cache[:, :512]), cache[:, 512:].contiguous())
    return torch.cat([part.view(torch.uint8) for part in parts], dim=1)


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
    for case in cases():
        found, wanted = case.launch(*case.arguments), case.twin(*case.arguments)
        row: dict[str, Any] = {"name": case.name, "error": error(found, wanted), "share_of_limit": None}
        if not PRETEND:
            took = seconds(lambda case=case: case.launch(*case.arguments))
            row |= {"us": took * 1e6, "gb_per_s": case.bytes / took / 1e9}
            row["share_of_limit"] = case.bytes / took / limit if limit else None
        rows.append(row)
    return rows


def check_rounds(folder: Path) -> dict[str, Any]:
    """Counted on a pretended GPU even if there is a real one: the counts are the same."""
    with pretending() as counts:
        stage, module = slice_of_r1(small_checkpoint(folder), CUDA, 600)
        counted: dict[Any, Counts] = {n: count(counts, lambda n=n: run_round(stage, n, 4, 100)) for n in (1, 4)}
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
    stacks = [(*fp8(257, 512, 7168), *fp8(257, 7168, 256), random(256, 7168)) for _ in range(4)]
    bias, found = torch.zeros(256, device=DEVICE), []
    for rows in (1, 2, 4, 8, 16, 32, 64):
        x = random(rows, 7168)

        def run(x: Tensor = x) -> None:
            for gate_up, gate_up_scale, down, down_scale, router in stacks:
                ids, _ = choose.launch(linear.launch(x, router, None, True), bias, 8, 8, 4, True, 2.5, 1)
                experts.launch(x, ids, gate_up, gate_up_scale, down, down_scale, True)

        found.append({"rows": rows, "ms_per_layer": seconds(run) / 4 * 1e3})
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
    round, draft = report["round"], report["draft"]
    counted = {
        "round of 1 sequence, 4 rows": round,
        "the same in a graph": round["in_a_graph"],
        "round of 4 sequences, 4 rows each": round["of_4_sequences"],
        "drafter's call, 2 drafts": draft["call_of_2_drafts"],
        "the same in graphs": draft["call_of_2_drafts_in_graphs"],
    }
    print(f"{'':44}{'launches':>10}{'syncs':>10}{'copies':>10}  outside, not counted")
    for name, each in counted.items():
        shown = "".join(f"{each[key]:>10}" for key in ("launches", "host_syncs", "copies"))
        print(f"{name:44}{shown}  {', '.join(each['copies_outside'])}")
        print("".join(f"{'between launches: ' + copy:>76}\n" for copy in each["copies_inside"]), end="")
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
    with tempfile.TemporaryDirectory() as folder:
        report |= check_rounds(Path(folder))
    report |= {"kernels": check_kernels(), "layers": check_layers(), **check_text()}
    show(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
