"""`outrider plan`: plans how to split a model over GPUs: what fits, and how fast it will be."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.cli.plan_options import PlanOptions
from outrider.cluster.planning.basis import measured
from outrider.cluster.planning.document import document
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Gpu, Hardware, find_gpu
from outrider.cluster.planning.picture import page
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.search import Objective, require_fit, search
from outrider.cluster.planning.tables import render
from outrider.workers.parallel.stages import expected_draft_steps
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.model.model_shapes import Shapes

# Defaults for a device given by figures: PCIe 4.0 x16 within a node, 100 Gb/s Ethernet between nodes.
_UNKNOWN: dict[str, Any] = {
    "name": "gpu",
    "memory_bytes": 0,
    "bandwidth": 0.0,
    "bf16_flops": 0.0,
    "fp8_flops": None,
    "kernels": True,
    "link": 32e9,
    "network": 12.5e9,
    "source": "by hand",
}


def _device(options: PlanOptions) -> Gpu:
    """The named device, with figures replaced by options. Raises SettingsError if figures are missing."""
    scaled = {
        "memory_bytes": (options.gpu_memory_gib, 2**30),
        "bandwidth": (options.gpu_bandwidth_gbs, 1e9),
        "bf16_flops": (options.gpu_tflops, 1e12),
        "link": (options.link_gbs, 1e9),
        "network": (options.network_gbps, 1e9 / 8),
    }
    given = {name: value * unit for name, (value, unit) in scaled.items() if value is not None}
    if not all(value > 0 for value in given.values()):
        raise SettingsError("a GPU's memory, bandwidth, TFLOPS, link and network must be above 0")
    if options.gpu is None and not {"memory_bytes", "bandwidth", "bf16_flops"} <= given.keys():
        raise SettingsError("no GPU given: use --gpu NAME, or --gpu-memory-gib, --gpu-bandwidth-gbs and --gpu-tflops")
    base = dataclasses.asdict(find_gpu(options.gpu)) if options.gpu is not None else _UNKNOWN
    if "bf16_flops" in given and base["fp8_flops"]:
        given["fp8_flops"] = 2 * given["bf16_flops"]
    return Gpu(**{**base, **given, "memory_bytes": round(given.get("memory_bytes", base["memory_bytes"]))})


def _workload(options: PlanOptions, model: ModelConfig) -> Workload:
    return Workload(
        concurrency=options.concurrency,
        context=options.context_tokens,
        draft_steps=expected_draft_steps(_drafts(options.speculation), model),
        acceptance=options.acceptance,
        numerics=options.numerics,
        redundant_experts=options.redundant_experts,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_seqs=options.max_num_seqs,
    )


def _efficiency(report: Path | None) -> Efficiency:
    """With the measurements of `report`. Raises ValueError if it has none."""
    if report is None:
        return Efficiency()
    try:
        content = json.loads(report.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {report}: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{report} is not a report of benchmarks/gpu_check.py")
    return measured(content, Efficiency())


def _weights(wanted: str, gpu: Gpu, model: ModelConfig) -> str:
    """`wanted`, but for "auto" the dtype that ranks use on `gpu`. Raises SettingsError for FP8 where it is not kept."""
    if gpu.kernels:
        return wanted
    if wanted == "fp8":
        raise SettingsError(
            f"--weights fp8: outrider's kernels do not run on {gpu.name}, so its weights are in 16 bits"
        )
    return "bfloat16" if wanted == "auto" and model.quantization_block else wanted


def _goal(options: PlanOptions) -> Objective:
    sizes = {name: getattr(options, f"{name}_parallel_size") for name in ("tensor", "pipeline", "expert", "data")}
    fixed = {name: size for name, size in sizes.items() if size is not None}
    return Objective(objective=options.objective, tokens_per_s_per_user=options.min_tokens_per_s, sizes=fixed)


def run_plan(options: PlanOptions) -> None:
    """Prints the plan. If nothing fits, raises DoesNotFitError, after printing JSON if requested."""
    model = load_shape(options.model)
    try:
        fleet = Hardware(gpu=_device(options), nodes=options.nodes, gpus_per_node=options.gpus_per_node)
        shapes = Shapes.of(model, _weights(options.weights, fleet.gpu, model), options.kv_cache_dtype)
        workload, goal = _workload(options, model), _goal(options)
        efficiency = _efficiency(options.gpu_check)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    ranking = search(shapes, fleet, workload, goal, efficiency)
    if options.as_json:
        text = json.dumps(document(options.model, ranking, goal, options.alternatives), indent=2)
        print(text)  # noqa: T201  # the command's output
    best = require_fit(ranking, options.model, fleet)
    shown = ranking.fitting[: 1 + options.alternatives]
    if options.html is not None:
        _write(options.html, page(options.model, best, shown))
    if not options.as_json:
        render(options.model, best, shown, goal, Console())


def _drafts(speculation: str) -> str | int:
    """Raises SettingsError unless it is auto, off or 1..16."""
    if speculation in ("auto", "off"):
        return speculation
    if speculation.isdecimal() and 1 <= int(speculation) <= 16:
        return int(speculation)
    raise SettingsError(f'speculation must be "auto", "off" or 1..16, got {speculation!r}')


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise OutriderError(f"cannot write {path}: {error.strerror}") from error
