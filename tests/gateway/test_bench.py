"""`outrider bench` against a real gateway."""

import asyncio
import json
from pathlib import Path

import pytest
from fakes import FakeEngine
from gateway.harness import running

from outrider.cluster.cli.app import run
from outrider.cluster.gateway.requests.limits import RequestLimits


def measured(model: Path, *arguments: str) -> int:
    """The command's exit status."""

    async def scenario() -> int:
        async with running(model, FakeEngine(max_model_len=4096)) as cluster:
            words = ["bench", "--address", cluster.address, "--rate", "40", "--seconds", "0.5", *arguments]
            return await asyncio.to_thread(run, words)

    return asyncio.run(scenario())


def test_each_speculation_meets_the_same_arrivals_and_is_shown_with_its_times(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "bench.json"

    assert measured(model, "--max-tokens", "3", "--json", str(figures)) == 0

    off, auto = json.loads(figures.read_text())["windows"]
    assert (off["speculation"], auto["speculation"]) == ("off", "auto")
    assert off["requests"] == auto["requests"] > 5
    assert off["errors"] == auto["errors"] == {}
    assert off["first_token_s"]["p50"] <= off["end_to_end_s"]["p50"] < 60
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows if row and row[0] == "40/s"] == [
        ["40/s", one["speculation"], f"{one['tokens_per_second']:.0f}"] for one in (off, auto)
    ]


def test_requests_that_fail_are_counted_by_kind_and_the_status_is_1(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "bench.json"

    async def scenario() -> int:
        async with running(model, limits=RequestLimits(max_prompt_tokens=1)) as cluster:
            words = ["bench", "--address", cluster.address, "--rate", "40", "--seconds", "0.5", "--speculation", "off"]
            return await asyncio.to_thread(run, [*words, "--json", str(figures)])

    assert asyncio.run(scenario()) == 1

    (window,) = json.loads(figures.read_text())["windows"]
    assert window["errors"] == {"InvalidRequestError": window["requests"]}
    assert "requests failed: InvalidRequestError" in capsys.readouterr().err


def test_a_gateway_that_is_not_there_is_said_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--address", "127.0.0.1:9", "--rate", "1"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
