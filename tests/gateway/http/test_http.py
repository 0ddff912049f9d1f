"""HTTP responses of a gateway with a fake engine: statuses, streams, authentication and cancellation."""

import asyncio
import gzip
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import EOS, FakeEngine
from gateway.certificates import SERVER, Authority, access
from gateway.harness import Cluster, eventually, running
from gateway.test_auth import BOSS, TEXT, line

from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway.requests.limits import RequestLimits
from outrider.proto.cluster_pb2 import EngineStatus, SpeculationStatus
from outrider.workers.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "hi"}]
POSTS = {
    "/v1/completions": {"prompt": [5, 6], "max_tokens": 4},
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 4},
    "/v1/messages": {"messages": HELLO, "max_tokens": 4},
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [100, 101]},
}


def client(cluster: Cluster, **options: Any) -> httpx.AsyncClient:
    scheme = "https" if options.get("verify") else "http"
    return httpx.AsyncClient(base_url=f"{scheme}://127.0.0.1:{cluster.gateway.http_port}", timeout=60, **options)


async def events(response: httpx.Response) -> AsyncIterator[Any]:
    """The data of a stream's events, up to [DONE]."""
    async for text in response.aiter_lines():
        if text.startswith("data: ") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data: "))


async def streamed(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    async with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in events(response)]


def engine_with_output(model: Path, text: str, per_round: int = 3) -> FakeEngine:
    tokenizer = Tokenizer.load(model)
    assert tokenizer is not None
    token_ids = [*tokenizer.encode_part(text), EOS]
    return FakeEngine(lambda request, index: token_ids, per_round=lambda given: per_round, max_model_len=2048)


def finished_outputs(cluster: Cluster) -> float:
    """How many outputs ended at their max_tokens."""
    labels = {"model_name": "small", "finished_reason": "length"}
    return cluster.gateway.metrics.registry.get_sample_value("vllm:request_success_total", labels) or 0


def test_every_path_answers(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            for path, body in POSTS.items():
                assert (await http.post(path, json=body)).status_code == 200, path
            models = (await http.get("/v1/models")).json()
            assert [(one["id"], one["max_model_len"]) for one in models["data"]] == [("small", 256)]
            assert (await http.get("/v1/models/small")).json()["object"] == "model"
            assert (await http.get("/health")).status_code == 200
            assert "outrider_gateway_requests_total" in (await http.get("/metrics")).text
            assert (await http.get("/v1/nothing")).json()["error"]["type"] == "not_found_error"
            assert (await http.get("/v1/completions")).status_code == 405
            tokens = (await http.post("/tokenize", json={"messages": HELLO})).json()
            assert tokens["count"] == len(tokens["tokens"])
            text = (await http.post("/detokenize", json={"tokens": tokens["tokens"]})).json()["prompt"]
            assert text == "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "suffix is not supported"),
        ("/v1/completions", {"prompt": []}, 400, "prompt must not be empty"),
        ("/v1/completions", {"prompt": [-1]}, 400, "prompt cannot be sent"),
        ("/v1/completions", {"prompt": [5], "max_tokens": 0}, 400, "max_tokens must be"),
        ("/v1/completions", {"prompt": [5], "logprobs": 21}, 400, "logprobs must be"),
        ("/v1/completions", {"prompt": [5], "stream_options": {}}, 400, "stream_options requires stream"),
        ("/v1/completions", {"prompt": [5] * 300}, 400, "shorter than the model's length"),
        ("/v1/completions", {}, 400, "prompt: Field required"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages must not be empty"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "messages[0] has no 'content'"),
        ("/v1/chat/completions", {"messages": HELLO, "model": "gpt"}, 404, "'gpt' is not served here"),
        ("/v1/chat/completions", {"messages": HELLO, "temperature": 101}, 400, "temperature must be"),
        ("/v1/chat/completions", {"messages": HELLO, "n": 0}, 400, "n must be"),
        ("/v1/chat/completions", {"messages": HELLO, "speculation": 17}, 400, "speculation must be"),
        ("/v1/chat/completions", {"messages": HELLO, "speculation": "perhaps"}, 400, "speculation must be"),
        ("/v1/chat/completions", {"messages": HELLO, "logit_bias": {"x": 1}}, 400, "logit_bias must be by token id"),
        ("/v1/chat/completions", {"messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs requires logprobs"),
        ("/v1/chat/completions", {"messages": HELLO, "tool_choice": "required"}, 400, "without tools"),
        ("/v1/chat/completions", {"messages": HELLO, "tools": [{"type": "web"}]}, 400, "tools[0] must be a function"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "does not support parts of type 'image_url'",
        ),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            400,
            "response_format cannot be followed",
        ),
        ("/v1/completions", {"prompt": [[]]}, 400, "prompt must not be empty"),
        ("/v1/completions", {"prompt": 5}, 400, "prompt: Input should be a valid string or a valid array"),
        ("/v1/completions", {"prompt": [5, "a"]}, 400, "prompt.1: Input should be a valid integer"),
        ("/v1/completions", {"prompt": [5], "stop": [None]}, 400, "stop.0: Input should be a valid string"),
        ("/v1/completions", {"prompt": [5], "speculation": {"mode": "x"}}, 400, "speculation.mode: Input should be"),
        ("/v1/completions", {"prompt": [5], "logit_bias": {"5": "x"}}, 400, "logit_bias[5] must be in"),
        ("/v1/completions", {"prompt": [5], "seed": 2**64}, 400, "seed must be"),
        ("/v1/completions", {"prompt": [5], "max_tokens": 2**64}, 400, "max_tokens must be at most"),
        ("/v1/chat/completions", {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role must be one"),
        ("/v1/chat/completions", {"messages": HELLO, "max_completion_tokens": 0}, 400, "max_completion_tokens must be"),
        ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs must"),
        ("/v1/messages", {"messages": HELLO}, 400, "max_tokens must be given"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1, "stop_sequences": [""]}, 400, "stop_sequences must be"),
        (
            "/v1/messages",
            {"messages": [{"role": "x", "content": ""}], "max_tokens": 1},
            400,
            "messages[0].role must be",
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "system": "x", "max_tokens": 1},
            400,
            "messages[0].content must be text",
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "c"}]}], "max_tokens": 1},
            400,
            "messages[0].content[0].name must be a text",
        ),
        ("/v1/responses", {"input": []}, 400, "input must not be empty"),
        ("/v1/responses", {"input": [{"role": "x", "content": ""}]}, 400, "input[0].role must be"),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 0}, 400, "max_output_tokens must be"),
        ("/v1/responses", {"input": "hi", "text": {"format": {"type": "x"}}}, 400, "text.format.type: Input should be"),
        ("/v1/responses", {"input": "hi", "text": {"format": {"type": "json_schema"}}}, 400, "text.format.json_schema"),
        (
            "/v1/responses",
            {"input": [*HELLO, {"type": "function_call", "call_id": "c", "name": "f", "arguments": 5}]},
            400,
            "input[1].arguments must be a text",
        ),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1, "tools": [{"type": "bash"}]}, 400, "no input_schema"),
        ("/v1/responses", {"input": "hi", "previous_response_id": "x"}, 400, "stores no responses"),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}, 400, "are not supported"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    model: Path, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            response = await http.post(path, json=body)
            assert response.status_code == status
            assert said in response.json()["error"]["message"]
            assert response.json()["error"]["type"] in ("invalid_request_error", "not_found_error")
            assert (response.json().get("type") == "error") is (path == "/v1/messages")
            assert cluster.engine.submitted == []

    asyncio.run(scenario())


def test_a_tool_whose_schema_cannot_be_followed_is_named(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=2048), http_port=0) as cluster, client(cluster) as http:
            schemas = {"good": {"type": "integer"}, "bad": {"type": "x"}}
            tools = [
                {"function": {"name": name, "parameters": {"properties": {"a": schema}}}}
                for name, schema in schemas.items()
            ]
            refused = await http.post("/v1/chat/completions", json={"messages": HELLO, "tools": tools})
            assert refused.status_code == 400
            said = "tools: the parameters of bad cannot be followed: Invalid type: x"
            assert (refused.json()["error"]["message"], refused.json()["error"]["param"]) == (said, "tools")
            assert cluster.engine.submitted == []

    asyncio.run(scenario())


def test_a_body_that_is_no_json_or_too_large_is_refused(model: Path) -> None:
    async def scenario() -> None:
        limits = RequestLimits(max_message_bytes=2048)
        async with running(model, http_port=0, limits=limits) as cluster, client(cluster) as http:
            for body in (b"", b"{", b"[]", b'"x"', b"\xff", b'{"prompt": "\\ud800"}', b"[" * 2000):
                assert (await http.post("/v1/completions", content=body)).status_code == 400, body
            large = await http.post("/v1/completions", json={"prompt": "x" * 3000})
            assert (large.status_code, "2048 bytes" in large.json()["error"]["message"]) == (413, True)

    asyncio.run(scenario())


def test_a_body_of_another_kind_is_refused_and_curls_default_is_not(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            body = json.dumps({"prompt": [5], "max_tokens": 1}).encode()
            json_type = "application/json"
            for kind in ("text/plain", "multipart/form-data; boundary=x", "application/xml"):
                refused = await http.post("/v1/completions", content=body, headers={"Content-Type": kind})
                assert (refused.status_code, refused.json()["error"]["type"]) == (415, "invalid_request_error"), kind
            packed = {"Content-Type": json_type, "Content-Encoding": "gzip"}
            refused = await http.post("/v1/messages", content=gzip.compress(body), headers=packed)
            assert refused.status_code == 415
            assert refused.json()["error"]["message"].startswith("content-encoding")
            for kind in (json_type, f"{json_type}; charset=utf-8", "application/x-www-form-urlencoded"):
                answer = await http.post("/v1/completions", content=body, headers={"Content-Type": kind})
                assert answer.status_code == 200, kind

    asyncio.run(scenario())


def test_an_unknown_path_or_method_is_named(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            wrong = await http.get("/v1/completions")
            assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
            assert wrong.json()["error"]["message"] == "/v1/completions takes POST, not GET"
            unknown = await http.post("/v1/embeddings", json={})
            assert unknown.status_code == 404
            assert unknown.json()["error"]["message"] == "there is no path /v1/embeddings"

    asyncio.run(scenario())


def test_an_answer_has_the_id_that_clients_show(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            for path in list(POSTS)[:4]:
                headers = (await http.post(path, json=POSTS[path])).headers
                (request,) = cluster.engine.submitted
                assert headers["x-request-id"] in request.request_id, path
                assert headers["request-id"] == headers["x-request-id"]
                cluster.engine.submitted.clear()

    asyncio.run(scenario())


def test_unknown_fields_are_ignored_and_named_in_the_log(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            body = {"prompt": [5], "max_tokens": 1, "frequency_penality": 1}
            assert (await http.post("/v1/completions", json=body)).status_code == 200

    with caplog.at_level(logging.INFO, logger="outrider"):
        asyncio.run(scenario())
    (record,) = [one for one in caplog.records if one.getMessage() == "unknown fields are ignored"]
    assert "frequency_penality" in str(record.__dict__)


def test_parameters_reach_the_engine(model: Path) -> None:
    given = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "repetition_penalty": 1.5, "seed": -3, "stop_token_ids": [9], "ignore_eos": True, "min_tokens": 2, "n": 2,
        "skip_special_tokens": False, "include_stop_str_in_output": True,
    }  # fmt: skip

    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            extras = {"logit_bias": {"5": 1.5}, "stop": "x", "speculation": {"mode": "fixed", "depth": 3}}
            sampled = {**given, **extras, "drafter": "lookup"}
            for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HELLO})):
                response = await http.post(path, json={**body, "max_tokens": 5, **sampled})
                assert response.status_code == 200, response.text
                assert len(response.json()["choices"]) == 2
            for request in cluster.engine.submitted:
                assert {name: getattr(request.params, name) for name in given} == {**given, "stop_token_ids": [9]}
                assert (request.params.logit_bias, request.params.stop_strings) == ({5: 1.5}, ("x",))
                assert (request.params.speculation, request.params.drafter, request.seed) == (3, "lookup", -3)
            cluster.engine.submitted.clear()
            for path in list(POSTS)[:3]:
                assert (await http.post(path, json={**POSTS[path], "top_k": -1})).status_code == 200
            assert [request.params.top_k for request in cluster.engine.submitted] == [0, 0, 0]

    asyncio.run(scenario())


def test_several_prompts_are_several_requests_and_choices_are_numbered_through_them(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            body = {"prompt": [[5, 6], [50, 51]], "n": 2, "max_tokens": 3, "return_token_ids": True}
            answer = (await http.post("/v1/completions", json=body)).json()
            found = [(choice["index"], choice["token_ids"]) for choice in answer["choices"]]
            wanted = [[106, 107, 108], [107, 108, 109], [151, 152, 153], [152, 153, 154]]
            assert found == list(enumerate(wanted))
            assert answer["usage"]["prompt_tokens"] == 4
            assert answer["usage"]["completion_tokens"] == 12
            pieces: dict[int, list[int]] = {}
            for event in await streamed(http, "/v1/completions", body):
                for choice in event["choices"]:
                    pieces.setdefault(choice["index"], []).extend(choice["token_ids"])
            assert pieces == dict(enumerate(wanted))
            assert cluster.gateway.live_requests == 0

    asyncio.run(scenario())


def test_a_stream_counts_as_it_goes_and_ends_with_the_usage(model: Path) -> None:
    async def scenario() -> None:
        async with (
            running(model, engine_with_output(model, "the quick brown fox" * 3), http_port=0) as cluster,
            client(cluster) as http,
        ):
            for path, body in list(POSTS.items())[:2]:
                options = {"include_usage": True, "continuous_usage_stats": True}
                asked = {**body, "max_tokens": 8, "stream_options": options}
                found = await streamed(http, path, asked)
                counts = [event["usage"]["completion_tokens"] for event in found]
                assert counts == sorted(counts)
                assert counts[-1] == 8
                assert found[-1]["choices"] == []
                stats = found[-1]["metrics"]["speculative_decoding"]
                assert sum(stats["acceptance_histogram"]) == stats["num_spec_steps"]
                accepted = sum(n * count for n, count in enumerate(stats["acceptance_histogram"]))
                assert accepted == stats["num_accepted_draft_tokens"]
                plain = await streamed(http, path, {**body, "max_tokens": 8})
                assert not any("usage" in event for event in plain)
                assert plain[-1]["metrics"]["speculative_decoding"]["num_spec_steps"] > 0

    asyncio.run(scenario())


@pytest.mark.parametrize("path", list(POSTS)[:2])
def test_a_stream_says_which_of_its_text_drafts_said_if_asked(model: Path, path: str) -> None:
    async def scenario() -> None:
        text = "the quick brown fox"
        async with running(model, engine_with_output(model, text), http_port=0) as cluster, client(cluster) as http:
            body = {**POSTS[path], "max_tokens": 64}
            choices = [one["choices"][0] for one in await streamed(http, path, {**body, "speculation_detail": True})]
            details = [choice["speculation"] for choice in choices if "speculation" in choice]
            pieces = [piece for detail in details for piece in detail["pieces"]]
            assert "".join(piece["content"] for piece in pieces) == text
            assert {piece["drafted"] for piece in pieces} == {True, False}
            assert sum(detail["drafted"] for detail in details) >= sum(detail["accepted"] for detail in details) > 0
            assert not any("speculation" in one["choices"][0] for one in await streamed(http, path, body))

    asyncio.run(scenario())


def test_the_status_is_json_once_or_whenever_it_differs(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            once = (await http.get("/status")).json()
            assert [(one["name"], one["state"]) for one in once["replicas"]] == [("r0", "ready")]
            async with http.stream("GET", "/status?watch=true") as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                stream = events(response)
                assert await anext(stream) == once
                speculation = SpeculationStatus(draft_depth=2.5, accepted_per_position=[3, 1])
                await cluster.controller.show(EngineStatus(running=7, speculation=speculation))
                engine = (await anext(stream))["replicas"][0]["engine"]
                assert (engine["running"], engine["speculation"]["draft_depth"]) == (7, 2.5)
                assert engine["speculation"]["accepted_per_position"] == [3, 1]
                await cluster.controller.stop()
                assert "controller" in (await anext(stream))["error"]["message"]
            assert (await http.get("/status")).status_code == 503
            assert (await http.get("/status?watch=true")).status_code == 503
            await cluster.controller.start()

    asyncio.run(scenario())


def test_who_leaves_the_status_is_no_longer_told(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster:
            own = cluster.controller.watchers
            async with client(cluster) as http, http.stream("GET", "/status?watch=true") as response:
                await anext(events(response))
                assert cluster.controller.watchers == own + 1
            await eventually(lambda: cluster.controller.watchers == own)

    asyncio.run(scenario())


def test_metrics_have_the_names_that_other_tools_read(model: Path) -> None:
    async def scenario() -> None:
        engine = engine_with_output(model, "the quick brown fox" * 3)
        engine.counters.waiting, engine.counters.kv_cache_usage = 2, 0.5
        async with running(model, engine, http_port=0) as cluster, client(cluster) as http:
            assert (await http.post("/v1/chat/completions", json={"messages": HELLO})).status_code == 200
            count = cluster.gateway.metrics.registry.get_sample_value
            own = {"model_name": "small"}
            await eventually(lambda: count("vllm:num_requests_waiting", own) == 2)
            assert count("vllm:num_requests_running", own) == 0
            assert count("vllm:kv_cache_usage_perc", own) == 0.5
            assert count("vllm:prompt_tokens_total", own) == len(engine.submitted[0].prompt_token_ids)
            drafted, accepted = (
                count(f"vllm:spec_decode_num_{name}_tokens_total", own) for name in ("draft", "accepted")
            )
            assert drafted
            assert accepted
            steps = count("vllm:spec_decode_num_drafts_total", own)
            each = [
                count("vllm:spec_decode_num_accepted_tokens_per_pos_total", {**own, "position": str(n)}) or 0
                for n in range(16)
            ]
            assert sum(each) == accepted
            assert max(each) <= (steps or 0)
            assert count("vllm:request_success_total", {**own, "finished_reason": "stop"}) == 1
            chat = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "outrider"}
            chat |= {f"gen_ai_{of}_model": "small" for of in ("request", "response")}
            assert count("gen_ai_server_request_duration_seconds_count", {**chat, "error_type": ""}) == 1
            for name in ("time_to_first_token", "time_per_output_token"):
                assert count(f"gen_ai_server_{name}_seconds_count", chat) == 1
            for name in ("e2e_request_latency", "time_to_first_token", "time_per_output_token"):
                assert count(f"vllm:{name}_seconds_count", own) == 1
            assert count("outrider_gateway_request_acceptance_count") == 1

    asyncio.run(scenario())


def test_no_metric_is_shown_without_a_models_name(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0, ready=False) as cluster, client(cluster) as http:
            count = cluster.gateway.metrics.registry.get_sample_value
            await cluster.controller.publish(("r0", 1, cluster.leader_address))
            await eventually(lambda: count("vllm:num_requests_running", {"model_name": "small"}) == 0)
            assert 'model_name=""' not in (await http.get("/metrics")).text

    asyncio.run(scenario())


def test_echo_gives_the_prompt_with_its_log_probabilities(model: Path) -> None:
    async def scenario() -> None:
        tokenizer = Tokenizer.load(model)
        assert tokenizer is not None
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            prompt = tokenizer.encode("the quick fox")
            body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 2}
            choice = (await http.post("/v1/completions", json=body)).json()["choices"][0]
            logprobs = choice["logprobs"]
            assert choice["text"].startswith(tokenizer.decode(prompt, skip_special_tokens=False))
            assert [len(entry) for entry in logprobs.values()] == [len(prompt) + 2] * 4
            assert logprobs["token_logprobs"][0] is None
            assert logprobs["tokens"][: len(prompt)] == [tokenizer.token_text(token) for token in prompt]
            only = (await http.post("/v1/completions", json={**body, "max_tokens": 0})).json()["choices"][0]
            assert only["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][: len(prompt)]
            pieces = await streamed(http, "/v1/completions", body)
            each = [event["choices"][0]["logprobs"] for event in pieces if event["choices"][0]["logprobs"]]
            assert [one for entry in each for one in entry["tokens"]] == logprobs["tokens"]
            assert [one for entry in each for one in entry["text_offset"]] == logprobs["text_offset"]

    asyncio.run(scenario())


def test_an_echo_is_the_same_whole_and_streamed_for_each_choice(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            body = {"prompt": "the quick fox", "echo": True, "logprobs": 1, "max_tokens": 2, "n": 2}
            choices = (await http.post("/v1/completions", json=body)).json()["choices"]
            pieces = [event["choices"][0] for event in await streamed(http, "/v1/completions", body)]
            for choice in choices:
                own = [piece for piece in pieces if piece["index"] == choice["index"]]
                assert "".join(piece["text"] for piece in own) == choice["text"]
                for name, values in choice["logprobs"].items():
                    found = [value for piece in own if piece["logprobs"] for value in piece["logprobs"][name]]
                    assert found == values, name

    asyncio.run(scenario())


def test_text_offsets_are_places_in_the_text_though_the_prompts_first_token_is_not_in_it(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster, client(cluster) as http:
            body = {"prompt": "the quick fox", "echo": True, "logprobs": 0, "max_tokens": 2}
            choice = (await http.post("/v1/completions", json=body)).json()["choices"][0]
            (first, *tokens), (begin, *offsets) = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
            assert (first, begin) == ("<｜begin▁of▁sentence｜>", 0)
            assert not choice["text"].startswith(first)
            for token, offset in zip(tokens, offsets, strict=True):
                assert choice["text"][offset : offset + len(token)] == token

    asyncio.run(scenario())


def test_reasoning_comes_under_both_names(model: Path) -> None:
    async def scenario() -> None:
        engine = engine_with_output(model, "<think>the quick</think>brown fox")
        async with running(model, engine, http_port=0) as cluster, client(cluster) as http:
            answer = (await http.post("/v1/chat/completions", json={"messages": HELLO})).json()
            message = answer["choices"][0]["message"]
            assert (message["reasoning"], message["content"]) == ("the quick", "brown fox")
            assert message["reasoning_content"] == message["reasoning"]
            details = answer["usage"]["completion_tokens_details"]
            assert 3 <= details["reasoning_tokens"] < answer["usage"]["completion_tokens"]
            found = [
                e["choices"][0]["delta"] for e in await streamed(http, "/v1/chat/completions", {"messages": HELLO})
            ]
            assert "".join(delta.get("reasoning_content", "") for delta in found) == "the quick"
            assert "".join(delta.get("content", "") for delta in found) == "brown fox"
            hidden = {"messages": HELLO, "include_reasoning": False}
            assert (
                "reasoning"
                not in (await http.post("/v1/chat/completions", json=hidden)).json()["choices"][0]["message"]
            )
            blocks = (await http.post("/v1/messages", json={"messages": HELLO, "max_tokens": 99})).json()["content"]
            assert [block["type"] for block in blocks] == ["thinking", "text"]
            items = (await http.post("/v1/responses", json={"input": "hi"})).json()["output"]
            assert [item["type"] for item in items] == ["reasoning", "message"]

    asyncio.run(scenario())


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", list(POSTS)[:4])
def test_a_client_that_leaves_is_cancelled(model: Path, path: str, streams: bool) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=1_000_000)
        async with running(model, engine, http_port=0) as cluster:
            body = {**POSTS[path], "stream": streams}
            body |= {name: 900_000 for name in ("max_tokens", "max_output_tokens") if name in body}
            async with client(cluster) as http:
                call = asyncio.create_task(http.post(path, json=body))
                await eventually(lambda: len(engine.live) == 1)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            await eventually(lambda: not engine.live and not cluster.gateway.live_requests)
            count = cluster.gateway.metrics.registry.get_sample_value
            await eventually(lambda: count("outrider_gateway_requests_total", {"status": "cancelled"}) == 1)
            assert finished_outputs(cluster) == 0

    asyncio.run(scenario())


def test_a_client_that_reads_nothing_is_cancelled_and_another_takes_its_place(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=10_000_000, per_round=lambda given: 1000, round_s=0.0001)
        limits: dict[str, Any] = {"max_live_requests": 1, "write_timeout_s": 0.3}
        async with running(model, engine, http_port=0, **limits) as cluster, client(cluster) as http:
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.gateway.http_port, limit=1024)
            body = json.dumps({"prompt": [5], "max_tokens": 9_000_000, "stream": True}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await reader.readline()
            await eventually(lambda: len(engine.submitted) == 1 and not cluster.gateway.live_requests)
            assert cluster.gateway.metrics.by_label("requests", "status") == {"slow_reader": 1}
            assert finished_outputs(cluster) == 0
            assert (await http.post("/v1/completions", json=POSTS["/v1/completions"])).status_code == 200
            assert finished_outputs(cluster) == 1
            writer.close()

    asyncio.run(scenario())


def test_a_client_that_leaves_while_it_is_written_to_is_cancelled(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=10**9, per_round=lambda given: 300, round_s=0.001)
        async with running(model, engine, http_port=0, write_timeout_s=600) as cluster:
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.gateway.http_port, limit=1024)
            body = json.dumps({"prompt": [5], "max_tokens": 900_000_000, "stream": True}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await reader.readline()
            await asyncio.sleep(3)  # by then nothing more fits between them
            writer.close()
            await eventually(lambda: cluster.gateway.live_requests == 0)
            assert cluster.gateway.metrics.by_label("requests", "status") == {"cancelled": 1}
            await eventually(lambda: not engine.live)
            assert len(engine.submitted) == 1

    asyncio.run(scenario())


def test_no_room_is_429_and_says_when_to_come_back(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=1_000_000)
        async with running(model, engine, http_port=0, max_live_requests=1) as cluster, client(cluster) as http:
            body = {"prompt": [5], "max_tokens": 900_000}
            call = asyncio.create_task(http.post("/v1/completions", json=body))
            await eventually(lambda: len(engine.live) == 1)
            for path in ("/v1/completions", "/v1/messages"):
                refused = await http.post(path, json=POSTS[path])
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["type"] == "rate_limit_error"
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(scenario())


def test_without_a_replica_or_while_it_drains_a_gateway_is_unavailable(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, ready=False, http_port=0, max_queue_wait_s=0) as cluster, client(cluster) as http:
            for path, body in POSTS.items():
                refused = await http.post(path, json=body)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1"), path
            assert (await http.get("/health")).status_code == 503
            assert (await http.get("/v1/models")).status_code == 503

    asyncio.run(scenario())


def test_a_replica_that_is_lost_ends_an_answer_with_an_error(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=1_000_000)
        async with running(model, engine, http_port=0, resume_wait_s=0.1) as cluster, client(cluster) as http:
            body = {"prompt": [5], "max_tokens": 900_000}
            whole = asyncio.create_task(http.post("/v1/completions", json=body))
            parts = asyncio.create_task(streamed(http, "/v1/completions", body))
            await eventually(lambda: len(engine.live) == 2)
            engine.fail("rank 1 was killed by signal 9")
            await cluster.controller.end("r0", 1, "rank 1 was killed by signal 9")

            assert (await whole).status_code == 500
            assert "rank 1 was killed" in (await whole).json()["error"]["message"]
            assert "rank 1 was killed" in (await parts)[-1]["error"]["message"]

    asyncio.run(scenario())


def test_tokens_open_http_as_they_open_grpc(model: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "tokens"
        file.write_text(line("writer", "inference", TEXT) + line("boss", "admin", BOSS))
        async with (
            running(model, http_port=0, access=AccessSettings(auth_token_file=file)) as cluster,
            client(cluster) as http,
        ):
            for headers in (
                {},
                {"Authorization": "Bearer no"},
                {"x-api-key": "no"},
                {"Authorization": f"Basic {TEXT}"},
            ):
                for path, body in POSTS.items():
                    refused = await http.post(path, json=body, headers=headers)
                    assert refused.status_code == 401
                    assert refused.headers["www-authenticate"] == "Bearer"
                for path in ("/metrics", "/v1/models", "/status", "/status?watch=true", "/nothing"):
                    assert (await http.get(path, headers=headers)).status_code == 401
            assert (await http.get("/health")).status_code == 200
            for path in ("/", "/page/app.mjs"):
                assert (await http.get(path)).status_code == 200, "the page itself is no secret"
            assert cluster.engine.submitted == []
            for headers in ({"Authorization": f"Bearer {TEXT}"}, {"x-api-key": TEXT}):
                for path, body in POSTS.items():
                    assert (await http.post(path, json=body, headers=headers)).status_code == 200
            admin = {"Authorization": f"Bearer {BOSS}"}
            assert (await http.post("/v1/completions", json=POSTS["/v1/completions"], headers=admin)).status_code == 403
            assert (await http.get("/metrics", headers=admin)).status_code == 200
            assert (await http.get("/v1/models", headers=admin)).status_code == 200
            assert (await http.get("/status", headers=admin)).status_code == 200
            for path in ("/status", "/status?watch=true"):
                assert (await http.get(path, headers={"x-api-key": TEXT})).status_code == 403
            file.write_text("")
            headers = {"Authorization": f"Bearer {TEXT}"}
            await eventually(lambda: True)
            assert (await http.get("/v1/models", headers=headers)).status_code == 401

    asyncio.run(scenario())


def test_tls_and_client_certificates_are_asked_for_and_read_anew(model: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
        locked = access(ours, client_ca=ours, health_port=0)
        async with running(model, http_port=0, ready=False, access=locked) as cluster:
            await cluster.controller.publish(("r0", 1, cluster.leader_address))
            await eventually(lambda: cluster.gateway.ready)

            async def status(trusted: Authority, shown: Authority | None) -> int:
                context = ssl.create_default_context(cafile=str(trusted.file))
                context.check_hostname = False
                if shown is not None:
                    issued = shown.issue("client.test")
                    context.load_cert_chain(issued.cert, issued.key)
                async with client(cluster, verify=context) as http:
                    return (await http.post("/v1/completions", json=POSTS["/v1/completions"])).status_code

            assert await status(ours, ours) == 200
            for trusted, shown in ((ours, None), (ours, others), (others, ours)):
                with pytest.raises(httpx.HTTPError):
                    await status(trusted, shown)
            issued = others.issue(SERVER)  # the gateway's files are replaced
            assert locked.tls_cert is not None
            assert locked.tls_key is not None
            locked.tls_key.write_bytes(issued.key.read_bytes())
            locked.tls_cert.write_bytes(issued.cert.read_bytes())
            assert await status(others, ours) == 200

    asyncio.run(scenario())
