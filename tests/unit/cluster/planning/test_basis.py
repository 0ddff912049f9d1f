"""A plan says where its figures come from, and counts what ranks on GPUs would run."""

import dataclasses

import pytest

from outrider.cluster.planning.basis import MEASURED, basis, measured
from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware, find_gpu
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.search import Objective, search
from outrider.cluster.planning.split import Split
from outrider.workers.types.model.model_shapes import Shapes

R1 = Shapes.of(load_shape("deepseek-r1"))
FLEET = Hardware(gpu=find_gpu("h200"), nodes=2, gpus_per_node=8)
REPORT = {
    "device": "NVIDIA H200",
    "kernels": [
        {"name": "experts, 64 rows", "share_of_limit": 0.81},
        {"name": "experts, 1 rows", "share_of_limit": 0.3},
        {"name": "attention, 4 rows, context 32768", "share_of_limit": 0.74},
        {"name": "draw", "share_of_limit": 0.1},
    ],
}


def test_every_figure_that_plans_are_computed_from_has_an_origin_and_a_source() -> None:
    figures = {field.name for field in dataclasses.fields(Efficiency)} - {"overlap", "measured", "measured_on"}
    found = basis(Efficiency())

    assert {one.name for one in found if one.value is not None} == figures
    assert all(one.source for one in found)
    assert MEASURED not in {one.origin for one in found}, "nothing was measured on outrider's kernels"


def test_measured_kernels_replace_published_ones_and_change_the_prediction() -> None:
    efficiency = measured(REPORT, Efficiency())
    before, after = (Candidate(R1, Split(tensor=8), Workload(), FLEET, each) for each in (Efficiency(), efficiency))
    origins = {one.name: one for one in basis(efficiency)}

    assert (efficiency.weight_bandwidth, efficiency.cache_bandwidth) == (0.81, 0.74)
    assert after.round_s < before.round_s
    for name in ("weight_bandwidth", "cache_bandwidth"):
        assert origins[name].origin == MEASURED
        assert origins[name].source.endswith("NVIDIA H200")
    assert origins["linear_flops"].origin != MEASURED


def test_a_report_of_a_pretended_gpu_is_refused() -> None:
    report = {"device": "pretended", "kernels": [{"name": "experts, 64 rows", "share_of_limit": None}]}

    with pytest.raises(ValueError, match="without --pretend"):
        measured(report, Efficiency())


def test_experts_that_are_spread_over_data_groups_count_in_fp8() -> None:
    sizes = {"tensor": 2, "pipeline": 1, "expert": 16, "data": 8}
    wide = Shapes.of(R1.model, "bfloat16")
    [auto], [widened] = (search(shapes, FLEET, Workload(), Objective(sizes=sizes)).fitting for shapes in (R1, wide))

    assert (auto.weights_in_memory, widened.weights_in_memory) == ("fp8", "bfloat16")
    assert widened.memories[0].weight_bytes > 1.8 * auto.memories[0].weight_bytes


def test_on_gpus_tensor_groups_sum_whatever_numerics_was_asked_for() -> None:
    sizes = {"tensor": 8, "pipeline": 1, "expert": 1, "data": 1}
    [plan] = search(R1, FLEET, Workload(numerics="exact"), Objective(sizes=sizes)).fitting

    assert plan.workload.numerics == "fast"
    assert {one.kind for _, one in plan.collectives(4) if one.purpose == "layer outputs"} == {"reduce"}
