"""`outrider generate`, with `--input` and without, and `top`, against a real gateway."""

import asyncio
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, running

from outrider.cluster.cli.app import run
from outrider.cluster.client.async_client import AsyncClient
from outrider.cluster.client.batch import Line, Record, answer_all
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

PROMPTS = [f"line {number}" for number in range(9)]


def requests(*extra: str, **sampling: Any) -> str:
    lines = [json.dumps({"id": text, "prompt": text, **sampling}) for text in PROMPTS]
    return "\n".join([*lines, *extra])


def records(path: Path) -> dict[int, Record]:
    return {record["line"]: record for record in map(json.loads, path.read_text().splitlines())}


async def command(cluster: Cluster, *arguments: object) -> int:
    """The command's exit status; the gateway lives on this loop."""
    words = ["generate", "--address", cluster.address, *(str(argument) for argument in arguments)]
    return await asyncio.to_thread(run, words)


async def answered(cluster: Cluster, lines: Iterable[Line], done: list[Record], **defaults: Any) -> None:
    async with AsyncClient(cluster.address) as client:
        await answer_all(client, lines, defaults, concurrency=4, done=done.append)


def test_every_line_is_answered_and_a_wrong_one_stops_no_other(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(requests('{"prompt": "a", "temprature": 1}', "{", '{"prompt": 5}', '{"prompt": "\\ud800"}'))

    async def scenario() -> int:
        async with running(model) as cluster:
            return await command(cluster, "--input", source, "--output", target, "--max-tokens", 3, "--seed", 5)

    assert asyncio.run(scenario()) == 1
    answers = records(target)
    assert [answers[number]["id"] for number in range(1, 10)] == PROMPTS
    assert all(len(answers[number]["outputs"][0]["token_ids"]) == 3 for number in range(1, 10))
    assert {answers[number]["seed"] for number in range(1, 10)} == {5}
    assert [answers[number]["error"]["kind"] for number in (10, 11, 12)] == ["InvalidRequestError"] * 3
    assert "temprature" in answers[10]["error"]["message"]
    assert "surrogate" in answers[13]["error"]["message"]
    assert "9 of 13 lines answered" in capsys.readouterr().err


def test_a_lines_own_fields_win_over_the_commands(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a", "max_tokens": 2}\n{"prompt": "a"}')

    async def scenario() -> int:
        async with running(model) as cluster:
            return await command(cluster, "--input", source, "--output", target, "--max-tokens", 4)

    assert asyncio.run(scenario()) == 0
    assert [len(records(target)[line]["outputs"][0]["token_ids"]) for line in (1, 2)] == [2, 4]


# A line for each of SamplingParams' fields that a client may say, and what the engine is to get.
SAID: dict[str, Any] = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.05,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.25,
    "logit_bias": {"5": -3.5, "7": 2},
    "allowed_token_ids": [104, 105, 106],
    "bad_words": ["fox"],
    "bad_words_token_ids": [[4, 5], [6]],
    "seed": -9,
    "max_tokens": 3,
    "min_tokens": 2,
    "stop": ["zz", "yy"],
    "stop_token_ids": [9],
    "ignore_eos": True,
    "logprobs": 2,
    "prompt_logprobs": 1,
    "structured_outputs": {"regex": "a+"},
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "speculation": 3,
    "drafter": "lookup",
    "reasoning": True,
}


def test_a_line_says_any_sampling_parameter(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "\n".join(json.dumps({"prompt": "a", "max_tokens": 3, name: value}) for name, value in SAID.items())
    )
    engine = FakeEngine()

    async def scenario() -> int:
        async with running(model, engine) as cluster:
            return await command(cluster, "--input", source, "--output", target, "--concurrency", 1)

    assert asyncio.run(scenario()) == 0, target.read_text()
    filled_in = {"reasoning_end_id", "reasoning_begin_id", "tool_format"}
    assert SAID.keys() == {field.name for field in dataclasses.fields(SamplingParams)} - filled_in
    got = {name: getattr(one.params, name) for name, one in zip(SAID, engine.submitted, strict=True)}
    assert got.pop("logit_bias") == {5: -3.5, 7: 2.0}
    assert got.pop("structured_outputs") == StructuredOutputsParams(regex="a+")
    words = [list(word) for word in got.pop("bad_words_token_ids")]
    assert words == SAID["bad_words_token_ids"]
    as_lists = {name: list(value) if isinstance(value, tuple) else value for name, value in got.items()}
    assert as_lists == {name: SAID[name] for name in as_lists}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temprature": 1}, "temprature"),
        ({"reasoning_end_id": 5}, "reasoning_end_id"),
        ({"timeout_s": 5}, "timeout_s"),
        ({"logit_bias": {"a": 1}}, "logit_bias must be an object"),
        ({"logit_bias": [5]}, "logit_bias must be an object"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs has no 'regexp'"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs cannot be followed"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens"),
        ({"stop": 5}, "stop"),
        ({"logprobs": 99}, "logprobs"),
        ({"traceparent": "00-x"}, "traceparent"),
    ],
)
def test_what_is_wrong_with_a_line_is_its_error_and_names_the_key(
    model: Path, tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": "a", **fields}) + '\n{"prompt": "b", "max_tokens": 1}')

    async def scenario() -> int:
        async with running(model) as cluster:
            return await command(cluster, "--input", source, "--output", target)

    assert asyncio.run(scenario()) == 1
    answers = records(target)
    assert answers[1]["error"]["kind"] == "InvalidRequestError"
    assert named in answers[1]["error"]["message"]
    assert answers[2]["outputs"]


def test_the_commands_options_reach_the_engine(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    options = (
        *("--presence-penalty", 0.5, "--frequency-penalty", 0.25, "--repetition-penalty", 1.5, "--seed", 4),
        *("--logit-bias", "5=-2.5", "--logit-bias", "6=1", "--bad-word", "fox", "--bad-word", "dog"),
        *("--allowed-token-id", 104, "--stop-token-id", 9, "--stop", "zz", "--max-tokens", 2, "--top-k", 3),
        *("--json-schema", tmp_path / "schema.json", "--logprobs", 1, "--speculation", 2, "--drafter", "lookup"),
        *("-n", 3),
    )
    engine = FakeEngine()

    async def scenario() -> int:
        async with running(model, engine) as cluster:
            return await command(cluster, "go", "--json", *options)

    assert asyncio.run(scenario()) == 0
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert (len(outputs), bool(outputs[0]["logprobs"])) == (3, True)
    params = engine.submitted[0].params
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.5, 0.25, 1.5)
    assert (params.logit_bias, params.bad_words) == ({5: -2.5, 6: 1.0}, ["fox", "dog"])
    assert (params.allowed_token_ids, tuple(params.stop_token_ids or ())) == ([104], (9,))
    assert (params.stop_strings, params.max_tokens, params.top_k, params.seed) == (("zz",), 2, 3, 4)
    assert params.structured_outputs == StructuredOutputsParams(json='{"type": "integer"}')
    assert (params.n, params.logprobs, params.speculation, params.drafter) == (3, 1, 2, "lookup")


def test_an_option_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (
        (["--logit-bias", "5:1"], "--logit-bias takes ID=BIAS, got '5:1'"),
        (["--grammar", str(tmp_path / "absent")], "--grammar"),
        (["--regex", "a", "--choice", "b"], "exactly one of"),
        (["--traceparent", "x"], "traceparent must be"),
    ):
        assert run(["generate", "go", *words]) == 2
        assert named in capsys.readouterr().err


def test_top_draws_what_the_gateway_streams(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> int:
        async with running(model) as cluster:
            words = ["top", "--address", cluster.address, "--looks", "2", "--interval", "0.1"]
            return await asyncio.to_thread(run, words)

    assert asyncio.run(scenario()) == 0
    assert "serves small" in capsys.readouterr().out


def test_a_second_run_asks_only_what_the_first_left(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(requests(max_tokens=2))
    engine = FakeEngine()

    async def scenario() -> None:
        async with running(model, engine) as cluster:
            await command(cluster, "--input", source, "--output", target)
            kept = target.read_text().splitlines()[:4]
            target.write_text("\n".join([*kept, '{"line": 7, "inp']))
            asked = len(engine.submitted)
            assert await command(cluster, "--input", source, "--output", target) == 0
            assert len(engine.submitted) - asked == 5
            assert target.read_text().splitlines()[:4] == kept

    asyncio.run(scenario())
    assert sorted(records(target)) == list(range(1, 10))


def test_no_more_requests_are_out_than_asked_for_and_a_full_gateway_is_waited_for(model: Path) -> None:
    engine, done = FakeEngine(), list[Record]()
    lines = [Line(number, json.dumps({"prompt": text})) for number, text in enumerate(PROMPTS, 1)]

    async def scenario() -> None:
        async with running(model, engine, max_live_requests=2) as cluster:
            await answered(cluster, lines, done, max_tokens=2)

    asyncio.run(scenario())
    assert sorted(record["line"] for record in done) == list(range(1, 10))
    assert not any("error" in record for record in done)
    assert engine.largest_batch <= 2


def test_stopping_cancels_what_is_out(model: Path) -> None:
    engine, done = FakeEngine(max_model_len=10_000), list[Record]()

    async def scenario() -> None:
        async with running(model, engine) as cluster:
            batch = asyncio.create_task(answered(cluster, [Line(1, '{"prompt": "a"}')], done))
            await eventually(lambda: engine.live_outputs == 1)
            batch.cancel()
            await asyncio.gather(batch, return_exceptions=True)
            await eventually(lambda: engine.live_outputs == 0)

    asyncio.run(scenario())
    assert not done


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a", "--input", "b", "--output", "c"], "either PROMPT or --input"),
        ([], "either PROMPT or --input"),
        (["--input", "b"], "must be given together"),
        (["--input", "absent.jsonl", "--output", "c"], "absent.jsonl"),
    ],
)
def test_what_does_not_go_together_is_bad_usage(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_without_a_gateway_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(requests())

    assert run(["generate", "--address", "127.0.0.1:1", "--input", str(source), "--output", str(target)]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err
    assert not target.exists()
