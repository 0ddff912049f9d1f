"""What the chart knows of models and GPUs, from the planner. `python helm/tools/plan_table.py` writes it."""

from pathlib import Path
from typing import Any

import yaml

from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import known_gpus
from outrider.cluster.planning.memory import stage_memory
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.split import Split, refusal
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.model.model_shapes import Shapes

FILE = Path(__file__).resolve().parents[1] / "outrider" / "files" / "plan.yaml"
KEPT = {"fp8": "auto", "bf16": "bfloat16"}  # what ranks keep FP8 weights as, and `outrider plan --weights` for it
MODELS = ("deepseek-r1", "deepseek-v3")
HEADER = (
    "# Made from the planner by helm/tools/plan_table.py. gb: 10^9 bytes. kernels: whether outrider's run on the GPU.\n"
)


def _model(name: str) -> dict[str, Any]:
    shape = load_shape(name)
    heads = shape.num_attention_heads
    return {
        "layers": shape.num_hidden_layers,
        "heads": heads,
        "experts": shape.n_routed_experts,
        "widestTensor": max(size for size in range(1, heads + 1) if refusal(shape, Split(tensor=size)) is None),
        "gb": {kept: round(_weight_bytes(shape, weights) / 1e9) for kept, weights in KEPT.items()},
    }


def _weight_bytes(shape: ModelConfig, weights: str) -> float:
    layers = range(shape.num_hidden_layers)
    return stage_memory(Shapes.of(shape, weights), Split(), Workload(), Efficiency(), 0, 0, layers).weight_bytes


def as_yaml() -> str:
    gpus = {name: {"gb": int(gpu.memory_bytes // 1e9), "kernels": gpu.kernels} for name, gpu in known_gpus().items()}
    return HEADER + yaml.safe_dump({"models": {name: _model(name) for name in MODELS}, "gpus": gpus}, sort_keys=False)


if __name__ == "__main__":
    FILE.write_text(as_yaml())
