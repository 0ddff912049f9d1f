"""`outrider generate --input` against a real gateway."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, running

from outrider.cluster.batch import Line, Record, answer_all
from outrider.cluster.cli import run
from outrider.cluster.client import AsyncClient

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
        (["a", "--input", "b", "--output", "c"], "either a prompt or --input"),
        ([], "either a prompt or --input"),
        (["--input", "b"], "go together"),
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
