"""Benchmarks of other projects run against a served scout, and understand what it says."""

import json
from pathlib import Path

import pytest
from clients.environments import SCOUT, SCRIPTS, output_of, program, vllm
from gateway.http.served import MODEL, Served

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
REQUESTS = 8


def test_aiperf_prints_acceptance(scout: Served, tmp_path: Path) -> None:
    printed = output_of(
        program("aiperf", "aiperf"), "profile", "--model", MODEL, "--url", scout.url, "--endpoint-type", "chat",
        "--streaming", "--tokenizer", str(SCOUT), "--synthetic-input-tokens-mean", "20", "--output-tokens-mean", "40",
        "--extra-inputs", "ignore_eos:true", "--extra-inputs", "speculation:4", "--request-count", str(REQUESTS),
        "--concurrency", "4", "--ui", "none", "--artifact-dir", str(tmp_path),
    )  # fmt: skip

    assert "Draft Acceptance Rate (%)" in printed
    assert "Acceptance Length (ratio)" in printed
    report = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == REQUESTS
    assert report["error_summary"] == []


def test_guidellm_completes_every_request(scout: Served, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    output_of(
        program("guidellm", "guidellm"), "run", "--backend", f"kind=openai_http,target={scout.url},model={MODEL}",
        "--profile", "kind=concurrent,streams=4", "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--tokenizer", f"kind=huggingface_auto,model={SCOUT}", "--data",
        "kind=synthetic_text,prompt_tokens=16,output_tokens=16", "--output", f"kind=json,path={report}",
        "--disable-console-interactive",
    )  # fmt: skip

    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (REQUESTS, 0, 0)


@pytest.mark.parametrize(
    ("backend", "endpoint"), [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")]
)
def test_vllm_bench_serve_completes_every_request(scout: Served, tmp_path: Path, backend: str, endpoint: str) -> None:
    output_of(
        vllm(), str(SCRIPTS / "vllm_bench_serve.py"), "--backend", backend, "--base-url", scout.url, "--endpoint",
        endpoint, "--model", MODEL, "--tokenizer", str(SCOUT), "--dataset-name", "random", "--random-input-len", "16",
        "--random-output-len", "16", "--num-prompts", str(REQUESTS), "--max-concurrency", "4", "--ignore-eos",
        "--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json",
    )  # fmt: skip

    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (REQUESTS, 0, REQUESTS * 16)
