"""The chart refuses what the planner refuses, and the examples are plans that fit."""

import json
from typing import Any

import pytest
from helm.rendering import CHART, EXAMPLES, RenderError, render, values_of, with_values

from helm.tools.plan_table import FILE, KEPT, MODELS, as_yaml
from outrider.cluster.cli.app import run
from outrider.cluster.planning.hardware import known_gpus
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.split import Split, refusal

PLANNED = sorted(name for name in EXAMPLES if values_of(name).get("plan"))
CHARTS_WORD = {"fp8": "fp8", "bfloat16": "bf16"}  # for what the planner says that ranks keep
SPLITS = [Split(tensor=size) for size in (1, 2, 3, 8, 16, 32, 128)]
SPLITS += [Split(pipeline=size) for size in (4, 61, 62)]
SPLITS += [Split(data=8, expert=expert) for expert in (1, 2, 8)]
SPLITS += [Split(data=3, expert=3), Split(tensor=2, data=4, expert=8), Split(tensor=2, data=4, expert=4)]

EIGHT = [Split(tensor=8), Split(tensor=8, expert=8), Split(data=8, expert=8), Split(tensor=2, data=4, expert=8)]


def test_what_the_chart_knows_is_the_planners() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["plan"]["properties"]

    assert FILE.read_text() == as_yaml(), "run python helm/tools/plan_table.py"
    assert set(schema["gpu"]["enum"]) == {"", *known_gpus()}
    assert set(schema["model"]["enum"]) == {"", *MODELS}


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_split_is_refused_by_the_chart_if_and_only_if_by_the_planner(split: Split) -> None:
    sizes = {name: getattr(split, name) for name in ("pipeline", "tensor", "data", "expert")}
    nodes = {"nodesPerReplica": split.world_size, "gpusPerNode": 1, "cpus": 8}
    values = {"parallel": sizes, "workers": nodes, "plan": {"model": "deepseek-r1"}}

    try:
        render(values)
        refused = ""
    except RenderError as error:
        refused = str(error)

    assert bool(refused) == (refusal(load_shape("deepseek-r1"), split) is not None), refused
    assert not refused or "parallel." in refused


def _arguments(values: dict[str, Any], weights: str = "auto") -> list[str]:
    workers, plan = values["workers"], values["plan"]
    fleet = ["--gpu", plan["gpu"], "--gpus-per-node", str(workers["gpusPerNode"])]
    sizes = [
        f"--{name}-parallel-size={values['parallel'].get(name, 1)}" for name in ("tensor", "pipeline", "expert", "data")
    ]
    return [
        "plan",
        "--model",
        plan["model"],
        "--weights",
        weights,
        *fleet,
        "--nodes",
        str(workers.get("nodesPerReplica", 1)),
        *sizes,
    ]


@pytest.mark.parametrize("name", PLANNED)
def test_an_example_is_a_plan_that_fits(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_arguments(values_of(name))) == 0, capsys.readouterr().err


@pytest.mark.parametrize(("name", "gpu"), [("r1-1x8-b200", "h200-141g"), ("r1-2x8-h200", "h100-80g")])
def test_r1_in_fp8_fits_on_8_h200_and_on_16_h100(name: str, gpu: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = with_values(name, {"plan.gpu": gpu})
    render(values)

    assert run(_arguments(values)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("gpu", ["h100-80g", "l40s-48g"])
@pytest.mark.parametrize("split", EIGHT, ids=str)
def test_the_chart_and_the_planner_count_weights_in_the_same_width(
    split: Split, gpu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {name: getattr(split, name) for name in ("pipeline", "tensor", "data", "expert")}
    values = with_values("r1-1x8-b200", {"plan.gpu": gpu, "parallel": sizes})

    assert run([*_arguments(values), "--json"]) == 1, "nothing fits these GPUs"
    kept = json.loads(capsys.readouterr().out)["weights_in_memory"]
    with pytest.raises(RenderError, match=f"GB in {CHARTS_WORD[kept]}, the dtype of ranks"):
        render(values)


SPREAD = {"pipeline": 1, "tensor": 2, "data": 4, "expert": 8}


@pytest.mark.parametrize("changes", [{"parallel": SPREAD}, {"parallel": SPREAD, "model.settings.enable_eplb": True}])
def test_r1_fits_on_8_h200_with_its_experts_spread(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    values = with_values("r1-1x8-b200", {"plan.gpu": "h200-141g", **changes})
    render(values)

    assert run(_arguments(values)) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("kept", "changes"),
    [
        ("fp8", {"plan.gpu": "h100-80g"}),
        ("bf16", {"plan.gpu": "h200-141g", "model.settings.kernels": "torch"}),
        ("bf16", {"plan.gpu": "a100-80g"}),
    ],
)
def test_what_does_not_fit_is_refused_by_both(
    kept: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    values = with_values("r1-1x8-b200", changes)

    assert run(_arguments(values, KEPT[kept])) == 1
    assert "does not fit" in capsys.readouterr().err
    with pytest.raises(RenderError, match=f"{changes['plan.gpu']} have .* GB in {kept}"):
        render(values)
