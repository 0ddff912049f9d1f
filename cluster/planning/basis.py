"""The sources of a plan's figures: measured, published, counted, computed or assumed. Pure."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outrider.cluster.planning.efficiency import Efficiency

MEASURED, PUBLISHED, COUNTED, COMPUTED, ASSUMED = "measured", "published", "counted", "computed", "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """One figure and its source. `value` is None for results of the plan."""

    name: str
    value: float | None
    origin: str  # MEASURED (outrider's kernels), PUBLISHED (others'), COUNTED, COMPUTED or ASSUMED
    source: str


_RESULTS = (
    Basis(name="memory", value=None, origin=COMPUTED, source="from the shapes; a test compares it with loaded ranks"),
    Basis(name="times", value=None, origin=COMPUTED, source="from bytes, operations, launches and the figures below"),
)
_COUNTED = "outrider on a simulated GPU (tests/gpu)"
_ORIGINS = {
    "weight_bandwidth": (PUBLISHED, "DeepGEMM on H800"),
    "linear_flops": (PUBLISHED, "DeepGEMM on H800"),
    "cache_bandwidth": (PUBLISHED, "FlashMLA on H800"),
    "attention_flops": (PUBLISHED, "FlashMLA on H800"),
    "link": (PUBLISHED, "a one-shot all-reduce on 8 H100"),
    "link_latency_s": (PUBLISHED, "a one-shot all-reduce on 8 H100"),
    "network": (PUBLISHED, "DeepEP on H800"),
    "exchange_latency_s": (PUBLISHED, "DeepEP on H800"),
    "network_latency_s": (ASSUMED, "a collective over nodes"),
    "dense_launches": (COUNTED, _COUNTED),
    "moe_launches": (COUNTED, _COUNTED),
    "dispatch_launches": (COUNTED, _COUNTED),
    "peer_dispatch_launches": (COUNTED, _COUNTED),
    "launch_s": (ASSUMED, "a kernel in a CUDA graph, beside its bytes and operations"),
    "eager_launch_s": (ASSUMED, "the host's time to launch a kernel outside of CUDA graphs"),
    "round_overhead_s": (ASSUMED, "the host's work between rounds"),
    "expert_imbalance": (ASSUMED, "the fullest rank over the mean"),
    "runtime_bytes": (ASSUMED, "driver, communication library, graphs"),
    "cache_share": (COMPUTED, "the engine's own share"),
}
# The largest case of each kernel in the report, since launch overhead dominates smaller ones.
_CASES = {"weight_bandwidth": "experts, 64 rows", "cache_bandwidth": "attention, 4 rows, context 32768"}


def basis(efficiency: Efficiency) -> list[Basis]:
    """The source of every input of the plans, and of the results."""
    found = list(_RESULTS)
    for name, (origin, source) in _ORIGINS.items():
        if name in efficiency.measured:
            origin, source = MEASURED, f"benchmarks/gpu_check.py on {efficiency.measured_on}"
        found.append(Basis(name=name, value=float(getattr(efficiency, name)), origin=origin, source=source))
    return found


def measured(report: Mapping[str, Any], efficiency: Efficiency) -> Efficiency:
    """`efficiency` with kernel measurements of benchmarks/gpu_check.py. Raises ValueError if there are none."""
    shares = {kernel["name"]: kernel["share_of_limit"] for kernel in report.get("kernels", ())}
    found: dict[str, Any] = {name: float(shares[case]) for name, case in _CASES.items() if shares.get(case)}
    if not found:
        raise ValueError(
            "the report has no kernel's share of the memory bandwidth: create it on a GPU that outrider plan knows,"
            " with benchmarks/gpu_check.py --json FILE, without --pretend"
        )
    return dataclasses.replace(efficiency, **found, measured=tuple(found), measured_on=str(report.get("device")))
