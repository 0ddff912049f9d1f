"""Options of `outrider plan`. A separate module, so that it loads fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Each field is an option; None where it was not given."""

    model: Annotated[str, typer.Option(help="deepseek-r1, deepseek-v3, scout, or a checkpoint directory.")]
    gpu: Annotated[str | None, typer.Option(help="h100-80g, h200, b200, ...; or give its figures below.")] = None
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs per node.")] = 8
    gpu_memory_gib: Annotated[float | None, typer.Option(help="Memory of a GPU, GiB.")] = None
    gpu_bandwidth_gbs: Annotated[float | None, typer.Option(help="Memory bandwidth of a GPU, GB/s.")] = None
    gpu_tflops: Annotated[float | None, typer.Option(help="Dense bf16 TFLOPS of a GPU.")] = None
    link_gbs: Annotated[float | None, typer.Option(help="Bandwidth between GPUs of a node, GB/s one way.")] = None
    network_gbps: Annotated[float | None, typer.Option(help="Network bandwidth per GPU, Gb/s.")] = None
    objective: Annotated[str, typer.Option(help="latency or throughput.")] = "latency"
    concurrency: Annotated[int, typer.Option(help="Sequences in flight; with throughput the planner chooses.")] = 16
    context_tokens: Annotated[int, typer.Option("--context", help="Tokens per sequence, prompt and output.")] = 4096
    speculation: Annotated[str, typer.Option(help="auto, off, or a fixed draft depth 1..16.")] = "auto"
    acceptance: Annotated[float, typer.Option(help="Acceptance rate of each draft, given those before it.")] = 0.8
    min_tokens_per_s: Annotated[float, typer.Option(help="With throughput: minimum tokens/s per user.")] = 0.0
    tensor_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only consider this size.")] = None
    pipeline_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only consider this size.")] = None
    expert_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only consider this size.")] = None
    data_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only consider this size.")] = None
    redundant_experts: Annotated[int, typer.Option(help="Redundant experts, over all ranks.")] = 0
    numerics: Annotated[str, typer.Option(help="exact or fast.")] = "exact"
    weights: Annotated[str, typer.Option(help="auto (the checkpoint's), fp8, bfloat16 or float32.")] = "auto"
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, or fp8 (GPU kernels).")] = "auto"
    gpu_check: Annotated[
        Path | None, typer.Option(help="JSON of benchmarks/gpu_check.py: measured kernels replace assumptions.")
    ] = None
    max_num_batched_tokens: Annotated[int, typer.Option(help="Maximum tokens per round.")] = 2048
    max_num_seqs: Annotated[int, typer.Option(help="Maximum sequences per data group.")] = 256
    alternatives: Annotated[int, typer.Option(min=0, help="Number of alternatives to show.")] = 8
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with a drawing to this file.")] = None
