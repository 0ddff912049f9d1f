"""What `outrider plan` is asked: its options, apart from the planner, which takes a while to load."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Each field is an option; None where it was not given."""

    model: Annotated[str, typer.Option(help="deepseek-r1, deepseek-v3, scout, or a checkpoint's directory.")]
    gpu: Annotated[str | None, typer.Option(help="h100-80g, h200, b200, ...; or say its figures by hand.")] = None
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the fleet.")] = 1
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of each.")] = 8
    gpu_memory_gib: Annotated[float | None, typer.Option(help="A GPU's memory.")] = None
    gpu_bandwidth_gbs: Annotated[float | None, typer.Option(help="Its memory's bandwidth, GB/s.")] = None
    gpu_tflops: Annotated[float | None, typer.Option(help="Its dense bf16 TFLOPS.")] = None
    link_gbs: Annotated[float | None, typer.Option(help="To the GPUs of its node, GB/s one way.")] = None
    network_gbps: Annotated[float | None, typer.Option(help="To other nodes, Gb/s a GPU.")] = None
    objective: Annotated[str, typer.Option(help="latency, or throughput.")] = "latency"
    concurrency: Annotated[int, typer.Option(help="Sequences in flight; for throughput the planner chooses.")] = 16
    context_tokens: Annotated[int, typer.Option("--context", help="Tokens of each, prompt and output.")] = 4096
    speculation: Annotated[str, typer.Option(help="auto, off, or drafts a round (1..16).")] = "auto"
    acceptance: Annotated[float, typer.Option(help="Chance of each draft, given those before it.")] = 0.8
    min_tokens_per_s: Annotated[float, typer.Option(help="Throughput: no user gets less.")] = 0.0
    tensor_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only plans with this size.")] = None
    pipeline_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only plans with this size.")] = None
    expert_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only plans with this size.")] = None
    data_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only plans with this size.")] = None
    redundant_experts: Annotated[int, typer.Option(help="Spare copies, over all ranks.")] = 0
    numerics: Annotated[str, typer.Option(help="exact, or fast.")] = "exact"
    weights: Annotated[str, typer.Option(help="auto (the checkpoint's), fp8, bfloat16 or float32.")] = "auto"
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, or fp8 (GPU kernels).")] = "auto"
    max_num_batched_tokens: Annotated[int, typer.Option(help="Rows of a round at most.")] = 2048
    max_num_seqs: Annotated[int, typer.Option(help="Sequences of a data group at most.")] = 256
    alternatives: Annotated[int, typer.Option(min=0, help="How many other plans to show.")] = 8
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture here.")] = None
