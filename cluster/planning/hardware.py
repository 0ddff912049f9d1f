"""The devices and nodes that a plan may use. Figures and their sources are in gpus.json."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from outrider.cluster.api.errors import SettingsError

_DATA = Path(__file__).parent / "gpus.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device. Bandwidths are in bytes per second and direction, FLOPS are dense."""

    name: str
    memory_bytes: int
    bandwidth: float
    bf16_flops: float
    fp8_flops: float | None  # None: no FP8 units, so 8-bit weights are multiplied as bf16
    kernels: bool  # whether kernels/gpu run on it; otherwise ranks use PyTorch, with weights in 16 bits
    link: float  # bandwidth to other devices of its node
    network: float  # bandwidth to other nodes
    source: str

    def flops(self, *, quantised: bool) -> float:
        return self.fp8_flops if quantised and self.fp8_flops else self.bf16_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Identical nodes of identical devices. Raises ValueError if there are none."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def size(self) -> int:
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        return f"{self.nodes} x {self.gpus_per_node} {self.gpu.name}"


def known_gpus() -> dict[str, Gpu]:
    """Every device of gpus.json, by name."""
    records = json.loads(_DATA.read_text())["gpus"]
    return {record["name"]: Gpu(**record) for record in records}


def find_gpu(name: str) -> Gpu:
    """By its name, or its name without the memory size ("h200"). Raises SettingsError, which suggests similar names."""
    gpus = known_gpus()
    wanted = name.lower()
    matches = [gpu for key, gpu in gpus.items() if wanted in (key, key.partition("-")[0])]
    if matches:
        return matches[0]
    near = difflib.get_close_matches(wanted, [*gpus, *(key.partition("-")[0] for key in gpus)], n=1, cutoff=0.4)
    hint = f": did you mean {near[0]}?" if near else ":"
    raise SettingsError(f"unknown --gpu {name!r}{hint} known are {', '.join(gpus)}")
