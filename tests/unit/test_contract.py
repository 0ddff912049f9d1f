"""The names that programs outside this repository rely on: commands, classes, fields, RPCs, metrics, files.

Each is written down here once. What they do is the business of the other tests.
"""

import dataclasses
import inspect
import json
import re
import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import outrider
from outrider.cluster.cli.app import app, run
from outrider.cluster.demo.report import DemoReport, DomainReport
from outrider.cluster.planning.hardware import find_gpu
from outrider.cluster.planning.presets import load_shape
from outrider.proto import cluster_pb2, inference_pb2
from outrider.workers.text.outputs import CompletionOutput, Logprob, RequestOutput, SpeculationSummary

ROOT = Path(__file__).resolve().parents[2]

ENGINE_ARGUMENTS: dict[str, Any] = {
    "model": "scout",
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "expert_parallel_size": 1,
    "data_parallel_size": 1,
    "device": "auto",
    "dtype": "auto",
    "numerics": "exact",
    "max_model_len": None,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "block_size": 16,
    "kv_cache_memory_bytes": None,
    "enable_prefix_caching": True,
    "speculation": "auto",
    "draft_model": None,
    "seed": 0,
}
SAMPLING: dict[str, Any] = {
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "seed": None,
    "max_tokens": 16,
    "min_tokens": 0,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "logprobs": None,
    "prompt_logprobs": None,
    "structured_outputs": None,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "speculation": None,
}
FIELDS = {
    RequestOutput: "prompt_token_ids outputs",
    CompletionOutput: "token_ids text finish_reason stop_reason logprobs speculation seed",
    Logprob: "logprob rank decoded_token",
    SpeculationSummary: "rounds drafted accepted accepted_per_position",
    DemoReport: "model pipeline_parallel_size identical domains",
    DomainReport: "prompts tokens tokens_per_second_off tokens_per_second_auto speedup acceptance_per_position "
    "mean_tokens_per_round",
}
COMMANDS = {
    "demo": "--json --report",
    "serve": "--model --config --set --tensor-parallel-size --pipeline-parallel-size --expert-parallel-size "
    "--data-parallel-size --replicas --speculation --host --port --http-port --http-host --health-port --tls-cert "
    "--tls-key --tls-client-ca --auth-token-file --ray-address --name",
    "gateway": "--controller --http-port --http-host",
    "generate": "prompt --address --temperature --json",
    "status": "--json",
    "scale": "replicas",
    "drain": "replica",
    "upgrade": "--timeout",
    "plan": "--model --gpu --nodes --gpus-per-node --json",
    "top": "",
    "bench": "",
    "distill": "",
}
RPCS = {
    "InferenceService": ("Generate(GenerateRequest) -> stream GenerateResponse",),
    "ClusterService": (
        "GetStatus(GetStatusRequest) -> GetStatusResponse",
        "Scale(ScaleRequest) -> ScaleResponse",
        "Drain(DrainRequest) -> DrainResponse",
        "GetModel(GetModelRequest) -> GetModelResponse",
        "WatchStatus(WatchStatusRequest) -> stream WatchStatusResponse",
    ),
}
MESSAGES = {
    "GenerateRequest": "request_id input.prompt input.token_ids input.messages sampling stopping response speculation "
    "num_sequences? structured_output? resume?",
    "SamplingParameters": "temperature? top_p? top_k? min_p? presence_penalty? frequency_penalty? "
    "repetition_penalty? logit_bias seed?",
    "StoppingParameters": "max_tokens? min_tokens? stop stop_token_ids ignore_eos?",
    "ResponseOptions": "logprobs? speculation_detail auto_reasoning",
    "SpeculationOptions": "mode max_draft_tokens? drafter?",
    "Resume": "seed fingerprint outputs",
    "ResumedOutput": "index token_ids",
    "GenerateResponse": "event.accepted event.output event.finished event.error",
    "Accepted": "request_id seed prompt_tokens fingerprint",
    "Output": "index token_ids text drafted accepted tool_calls",
    "Finished": "index reason usage",
    "Usage": "prompt_tokens cached_tokens completion_tokens rounds drafted accepted",
    "ScaleResponse": "desired ready pending reason",
    "GetModelResponse": "fingerprint",
}
ENGINE_METRICS = """
time_to_first_token_seconds request_time_per_output_token_seconds e2e_request_latency_seconds num_requests_running
num_requests_waiting kv_cache_usage_perc prefix_cache_queries_total prefix_cache_hits_total
request_success_total{finished_reason} spec_decode_num_drafts_total spec_decode_num_draft_tokens_total
spec_decode_num_accepted_tokens_total spec_decode_num_accepted_tokens_per_pos_total{position}
stage_busy_seconds_total{stage} spec_decode_draft_depth expert_imbalance generation restarts
"""
GATEWAY_METRICS = "requests_total queued_tokens time_to_first_token_seconds e2e_request_latency_seconds"
GPUS = "h100-80g h200-141g h800-80g a100-80g b200-180g h200"
MODELS = "deepseek-r1 deepseek-v3 scout"
CHART_KINDS = "RayCluster Deployment Service ServiceAccount Role RoleBinding NetworkPolicy PodDisruptionBudget"
MAKE_TARGETS = "demo test test-full check"


def test_the_package_offers_its_names() -> None:
    for name in ("LLM", "SamplingParams", "Client", "AsyncClient"):
        assert inspect.isclass(getattr(outrider, name))
        assert name in outrider.__all__


@pytest.mark.parametrize(
    ("which", "known"), [("LLM", ENGINE_ARGUMENTS), ("SamplingParams", SAMPLING)], ids=["LLM", "SamplingParams"]
)
def test_parameters_have_their_names_and_defaults(which: str, known: dict[str, Any]) -> None:
    parameters = inspect.signature(getattr(outrider, which)).parameters

    assert {name: parameters[name].default for name in known if name in parameters} == known


def test_an_llm_generates_chats_streams_and_closes() -> None:
    generate = inspect.signature(outrider.LLM.generate).parameters
    assert [*generate][1:] == ["prompts", "sampling_params", "use_tqdm"]
    assert generate["use_tqdm"].default is False
    for name in ("chat", "stream", "close", "__enter__", "__exit__"):
        assert callable(getattr(outrider.LLM, name))


@pytest.mark.parametrize(("kind", "names"), FIELDS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_returned_has_its_fields(kind: Any, names: str) -> None:
    assert set(names.split()) <= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(("name", "options"), COMMANDS.items(), ids=COMMANDS.keys())
def test_a_command_has_its_options(name: str, options: str) -> None:
    command = typer.main.get_command(app).commands[name]

    assert set(options.split()) <= {word for parameter in command.params for word in parameter.opts}


def test_the_command_itself_has_a_version_a_log_level_and_tracebacks_on_demand() -> None:
    known = {word for parameter in typer.main.get_command(app).params for word in parameter.opts}

    assert {"--version", "--log-level", "--debug"} <= known


@pytest.mark.parametrize(("service", "calls"), RPCS.items(), ids=RPCS.keys())
def test_a_service_has_its_calls(service: str, calls: tuple[str, ...]) -> None:
    module = inference_pb2 if service == "InferenceService" else cluster_pb2
    descriptor = module.DESCRIPTOR.services_by_name[service]

    assert descriptor.full_name == f"outrider.v1.{service}"
    assert set(calls) <= {_spoken(method) for method in descriptor.methods}


def _spoken(method: Any) -> str:
    stream = "stream " if method.server_streaming else ""
    return f"{method.name}({method.input_type.name}) -> {stream}{method.output_type.name}"


@pytest.mark.parametrize(("message", "names"), MESSAGES.items(), ids=MESSAGES.keys())
def test_a_message_has_its_fields_and_absent_is_not_zero(message: str, names: str) -> None:
    module = inference_pb2 if hasattr(inference_pb2, message) else cluster_pb2

    assert set(names.split()) <= set(_field_names(getattr(module, message).DESCRIPTOR))


def _field_names(descriptor: Any) -> Iterator[str]:
    """A name, with its oneof before it, or "?" behind it if its absence is seen."""
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if oneof is not None and not oneof.name.startswith("_"):
            yield f"{oneof.name}.{field.name}"
        else:
            yield f"{field.name}?" if oneof is not None else field.name


def test_speculation_has_its_modes() -> None:
    modes = inference_pb2.SpeculationMode.keys()

    assert {f"SPECULATION_MODE_{mode}" for mode in ("AUTO", "OFF", "FIXED")} <= set(modes)


def test_an_engine_publishes_its_metrics_and_a_gateway_its_own() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "reference_pages.py"))["metrics"]()
    known = dict(re.findall(r"^\| `(\w+)` \| \w+ \| ([\w, ]*) \|", page, re.MULTILINE))

    for metric in ENGINE_METRICS.split():
        name, _, label = metric.rstrip("}").partition("{")
        assert label in ("", *known[f"ray_outrider_{name}"].split(", ")), metric
    assert {f"outrider_gateway_{name}" for name in GATEWAY_METRICS.split()} <= set(known)


@pytest.mark.parametrize("name", GPUS.split())
def test_a_gpu_is_known(name: str) -> None:
    assert find_gpu(name).name.startswith(name)


@pytest.mark.parametrize("name", MODELS.split())
def test_a_model_can_be_planned_by_name(name: str) -> None:
    assert load_shape(name).num_hidden_layers > 0


def test_a_plan_has_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "deepseek-r1", "--gpu", "h200", "--nodes", "1", "--gpus-per-node", "8", "--json"]
    assert run(words) == 0

    plan = json.loads(capsys.readouterr().out)
    sizes = {f"{way}_parallel_size" for way in ("tensor", "pipeline", "expert", "data")}
    assert {"fits", "world_size", "bytes_per_gpu", "kv_cache_tokens", "stages", "alternatives", *sizes} <= set(plan)
    assert plan["fits"] is True


def test_what_does_not_fit_says_bytes_needed_and_had_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model", "deepseek-r1", "--gpu", "a100-80g", "--nodes", "1", "--json"]) == 1

    heard = capsys.readouterr()
    plan = json.loads(heard.out)
    assert plan["fits"] is False
    assert plan["bytes_needed"] > plan["bytes_had"]
    assert heard.err.startswith("error: ")


def test_the_charts_templates_have_every_kind_and_examples_lie_beside() -> None:
    chart = ROOT / "helm" / "outrider"
    kinds = _found(r"^kind: (\w+)$", (chart / "templates").rglob("*.yaml"))

    assert set(CHART_KINDS.split()) <= kinds
    assert len([*chart.glob("ci/*.yaml")]) >= 5


def test_make_has_its_targets() -> None:
    assert set(MAKE_TARGETS.split()) <= _found(r"^([\w-]+):", [ROOT / "Makefile"])


def _found(pattern: str, paths: Iterable[Path]) -> set[str]:
    return {match for path in paths for match in re.findall(pattern, path.read_text(), re.MULTILINE)}
