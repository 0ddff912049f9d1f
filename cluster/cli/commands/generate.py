"""`outrider generate`: sends one request to a gateway and prints the streamed output."""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from outrider.cluster.api.errors import InvalidRequestError
from outrider.cluster.api.generation import Finished, Output
from outrider.cluster.cli.commands.batch import run_batch
from outrider.cluster.cli.connection import Connection
from outrider.cluster.client.client import Client
from outrider.workers.text.assembler import Usage

__all__ = ["check_sources", "run_batch", "run_generate"]
_SHOWN_AS_JSON = {"n": 1, "logprobs": None, "prompt_logprobs": None}  # with their values if not requested


def check_sources(prompt: str | None, source: Path | None, target: Path | None) -> None:
    """Raises BadParameter if the options cannot be combined."""
    if (prompt is None) == (source is None):
        raise typer.BadParameter("give either PROMPT or --input FILE.jsonl")
    if (source is None) != (target is None):
        raise typer.BadParameter("--input and --output must be given together")


def run_generate(prompt: str, connection: Connection, sampling: Mapping[str, Any], *, as_json: bool) -> None:
    """Raises InvalidRequestError for an option whose result is shown only with --json."""
    unshown = [name for name, absent in _SHOWN_AS_JSON.items() if sampling.get(name, absent) != absent]
    if unshown and not as_json:
        raise InvalidRequestError(f"--{unshown[0].replace('_', '-')} needs --json")
    with connection.client() as client:
        if as_json:
            answer = client.generate(prompt, **sampling)
            print(json.dumps(dataclasses.asdict(answer)))  # noqa: T201  # the command's output
        else:
            _stream(client, prompt, sampling)


def _stream(client: Client, prompt: str, sampling: Mapping[str, Any]) -> None:
    began = time.monotonic()
    usage = Usage()
    for event in client.stream(prompt, **sampling):
        match event:
            case Output(text=text, reasoning=reasoning):
                sys.stderr.write(reasoning)
                sys.stdout.write(text)
                sys.stdout.flush()
            case Finished(usage=Usage() as whole):
                usage = whole
    sys.stdout.write("\n")
    if sys.stderr.isatty():
        print(summary(usage, time.monotonic() - began), file=sys.stderr)  # noqa: T201  # for the terminal


def summary(usage: Usage, seconds: float) -> str:
    tokens = usage.completion_tokens
    return f"[{tokens} tokens, {tokens / max(seconds, 1e-9):.0f} a second, {tokens / max(usage.rounds, 1):.2f} a round]"
