"""What the chart knows of models and GPUs, from the planner. `python tests/helm/plan_table.py` writes it."""

from pathlib import Path
from typing import Any

import yaml

from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import known_gpus
from outrider.cluster.planning.memory import stage_memory
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.split import Split, refusal
from outrider.workers.model.shapes import Shapes

FILE = Path(__file__).resolve().parents[2] / "helm" / "outrider" / "files" / "plan.yaml"
HELD = "bfloat16"  # what ranks keep of FP8 weights: model/weights.py widens them as it reads them
MODELS = ("deepseek-r1", "deepseek-v3")
HEADER = "# Made from the planner by tests/helm/plan_table.py. gb: 10^9 bytes, of weights in bf16, and of a device.\n"


def _model(name: str) -> dict[str, Any]:
    shape = load_shape(name)
    shapes, layers = Shapes.of(shape, HELD), range(shape.num_hidden_layers)
    memory = stage_memory(shapes, Split(), Workload(), Efficiency(), 0, 0, layers)
    heads = shape.num_attention_heads
    return {
        "layers": shape.num_hidden_layers,
        "heads": heads,
        "experts": shape.n_routed_experts,
        "widestTensor": max(size for size in range(1, heads + 1) if refusal(shape, Split(tensor=size)) is None),
        "gb": round(memory.weight_bytes / 1e9),
    }


def as_yaml() -> str:
    gpus = {name: int(gpu.memory_bytes // 1e9) for name, gpu in known_gpus().items()}
    return HEADER + yaml.safe_dump({"models": {name: _model(name) for name in MODELS}, "gpus": gpus}, sort_keys=False)


if __name__ == "__main__":
    FILE.write_text(as_yaml())
