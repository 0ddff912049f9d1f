import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from outrider.cluster.cli.app import run
from outrider.workers.config import resolve_model

SOURCE = Path(__file__).parents[5] / "src"
R1_ON_H200 = ("plan", "--model", "deepseek-r1", "--gpu", "h200", "--nodes", "1", "--gpus-per-node", "8")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:  # type: ignore[type-arg]
    assert run([*arguments, "--json"]) == 0
    found: dict = json.loads(capsys.readouterr().out)  # type: ignore[type-arg]
    return found


def test_a_plan_as_json_has_what_others_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, *R1_ON_H200)

    assert plan["fits"] is True
    assert (
        plan["world_size"] == plan["pipeline_parallel_size"] * plan["data_parallel_size"] * plan["tensor_parallel_size"]
    )
    assert plan["expert_parallel_size"] in (1, plan["data_parallel_size"] * plan["tensor_parallel_size"])
    assert 0 < plan["bytes_per_gpu"] <= plan["fleet"]["gpu"]["memory_bytes"]
    assert plan["kv_cache_tokens"] > 16 * 4096
    assert [stage["layers"] for stage in plan["stages"]][-1][1] == 61
    assert plan["alternatives"]
    assert [plan["seconds_per_token"]] + [other["seconds_per_token"] for other in plan["alternatives"]] == sorted(
        [plan["seconds_per_token"], *(other["seconds_per_token"] for other in plan["alternatives"])]
    )


def test_the_bytes_of_a_stage_add_up_to_what_a_gpu_needs(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, *R1_ON_H200)

    tightest = plan["stages"][plan["tightest_stage"]]
    assert sum(tightest["bytes"].values()) == pytest.approx(plan["bytes_per_gpu"], rel=1e-3)


def test_deeper_drafts_pay_while_rounds_are_short_and_are_told_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    """A crowd's gain is compared on one split and over a short context: there the work of its rows takes the time."""
    lone = planned(capsys, *R1_ON_H200, "--concurrency", "1")["drafts"]
    one_split = (*R1_ON_H200, "--tensor-parallel-size", "8", "--context", "256")
    crowds = [planned(capsys, *one_split, "--concurrency", count)["drafts"] for count in ("256", "512", "1024", "2048")]

    def gain(depths: list) -> float:  # type: ignore[type-arg]
        return float(depths[3]["tokens_per_s_per_user"] / depths[0]["tokens_per_s_per_user"])

    assert [one["draft_steps"] for one in lone] == list(range(7))
    assert [one["tokens_per_round"] for one in lone] == sorted(one["tokens_per_round"] for one in lone)
    assert gain(lone) > 1.2
    assert gain(lone) > gain(crowds[-1])
    assert [gain(crowd) for crowd in crowds] == sorted((gain(crowd) for crowd in crowds), reverse=True)


def test_fp8_weights_are_in_16_bits_on_gpus_without_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    on_a100 = ("plan", "--model", "deepseek-r1", "--gpu", "a100", "--nodes", "4", "--gpus-per-node", "8")

    assert planned(capsys, *on_a100)["weights_in_memory"] == "bfloat16"
    assert run([*on_a100]) == 0
    assert "kernels do not run on a100-80g" in capsys.readouterr().out
    assert run([*on_a100, "--weights", "fp8"]) == 2
    assert "a100-80g" in capsys.readouterr().err


def test_a_model_without_a_module_is_planned_without_drafts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((resolve_model("scout") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_nextn_predict_layers": 0}))

    plan = planned(capsys, "plan", "--model", str(tmp_path), "--gpu", "h200")

    assert [one["draft_steps"] for one in plan["drafts"]] == [0]
    assert "drafter" not in plan["stages"][0]["bytes"]


def test_a_table_names_the_best_split_and_the_parts_of_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*R1_ON_H200, "--tensor-parallel-size", "8"]) == 0

    said = capsys.readouterr().out
    assert "TP8" in said
    for word in ("attention", "experts", "exchange", "drafts", "head", "cache"):
        assert word in said


def test_what_does_not_fit_ends_with_1_and_the_bytes_needed_and_had(capsys: pytest.CaptureFixture[str]) -> None:
    status = run(
        ["plan", "--model", "deepseek-r1", "--gpu", "h100-80g", "--nodes", "1", "--gpus-per-node", "8", "--json"]
    )

    said = capsys.readouterr()
    plan = json.loads(said.out)
    assert status == 1
    assert plan["fits"] is False
    assert plan["bytes_missing"] == plan["bytes_needed"] - plan["bytes_had"] > 0
    assert said.err.startswith("error: deepseek-r1 does not fit 1 x 8 h100-80g")
    assert said.err.count("\n") == 1
    assert f"{plan['bytes_needed']:,}" in said.err
    assert f"{plan['bytes_had']:,}" in said.err


def test_measured_kernels_replace_published_figures_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "check.json"
    report.write_text(
        json.dumps({"device": "NVIDIA H200", "kernels": [{"name": "experts, 64 rows", "share_of_limit": 0.8}]})
    )
    before, after = planned(capsys, *R1_ON_H200), planned(capsys, *R1_ON_H200, "--gpu-check", str(report))

    assert after["round_s"] < before["round_s"]
    assert "measured" not in {one["origin"] for one in before["basis"]}
    assert [one["name"] for one in after["basis"] if one["origin"] == "measured"] == ["weight_bandwidth"]
    assert run([*R1_ON_H200, "--gpu-check", str(report)]) == 0
    assert "NVIDIA H200" in capsys.readouterr().out


def test_a_report_that_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.json"
    for content, named in (("{}", "--pretend"), ("{", "broken.json"), ("[]", "broken.json")):
        broken.write_text(content)
        assert run([*R1_ON_H200, "--gpu-check", str(broken)]) == 2
        assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--gpu", "h2000"), "h200"),
        ((), "--gpu"),
        (("--gpu", "h200", "--nodes", "0"), "--nodes"),
        (("--gpu", "h200", "--speculation", "17"), "speculation"),
        (("--gpu", "h200", "--acceptance", "2"), "acceptance"),
        (("--gpu", "h200", "--objective", "fun"), "objective"),
        (("--gpu", "h200", "--weights", "int3"), "weights"),
        (("--gpu", "h200", "--kv-cache-dtype", "int3"), "kv_cache_dtype"),
        (("--gpu", "h200", "--gpu-memory-gib", "-1"), "memory"),
        (("--gpu-memory-gib", "80"), "--gpu-tflops"),
    ],
)
def test_bad_usage_is_status_2_and_named(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    assert run(["plan", "--model", "scout", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error


def test_a_gpu_may_be_described_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    by_hand = ("--gpu-memory-gib", "141", "--gpu-bandwidth-gbs", "4800", "--gpu-tflops", "989.4", "--link-gbs", "450")
    plan = planned(capsys, "plan", "--model", "deepseek-v3", *by_hand, "--network-gbps", "400")

    assert plan["fits"]
    assert plan["fleet"]["gpu"]["link"] == 450e9
    assert plan["fleet"]["gpu"]["network"] == 50e9


class Page(HTMLParser):
    """Collects a page's words, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag not in ("meta", "br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def test_the_page_shows_every_rank_with_its_layers_and_experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = (
        "--tensor-parallel-size",
        "4",
        "--pipeline-parallel-size",
        "2",
        "--expert-parallel-size",
        "4",
        "--data-parallel-size",
        "1",
    )
    assert run([*R1_ON_H200, *sizes, "--html", str(tmp_path / "plan.html")]) == 0
    text = (tmp_path / "plan.html").read_text()

    page = Page()
    page.feed(text)
    assert not page.open
    shown = " ".join(page.words)
    for rank in range(8):
        assert f"rank {rank} stage {rank // 4}, tensor {rank % 4}" in shown
    for expert in (0, 64, 128, 192):
        assert shown.count(f"experts {expert}..{expert + 63}") == 2
    assert "http" not in text
    assert "<script" not in text


def test_planning_loads_neither_torch_nor_ray_nor_grpc() -> None:
    command = ["plan", "--model", "scout", "--gpu", "h200", "--json"]
    code = f"import sys; from outrider.cluster.cli.app import run; run({command}); print(*sys.modules, file=sys.stderr)"

    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=True
    )

    assert json.loads(done.stdout)["fits"]
    assert not {"torch", "ray", "grpc"} & set(done.stderr.split())
