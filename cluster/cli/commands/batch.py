"""`outrider generate --input`: sends a file of requests to a gateway and writes a file of answers, with progress."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.cli.connection import Connection
from outrider.cluster.client.batch import Answers, Line, Record, answer_all, read_lines


class _BatchTally:
    """Counts the records, writes them, and advances the bar."""

    def __init__(self, answers: Answers, progress: Progress, lines: int, earlier: int) -> None:
        self._answers = answers
        self._progress = progress
        self._bar = progress.add_task("answered", total=lines, completed=earlier, note="")
        self.failed = 0
        self.tokens = 0

    def add(self, record: Record) -> None:
        self._answers.add(record)
        self.failed += "error" in record
        self.tokens += record.get("usage", {}).get("completion_tokens", 0)
        note = f"{self.tokens} tokens" + (f", {self.failed} failed" if self.failed else "")
        self._progress.update(self._bar, advance=1, note=note)


def run_batch(
    source: Path,
    target: Path,
    connection: Connection,
    defaults: Mapping[str, Any],
    *,
    concurrency: int,
    overwrite: bool,
) -> None:
    """Exits with status 1 if a line failed. Answers are in `target` even after an error; the same call continues."""
    if target.exists() and source.exists() and target.samefile(source):
        raise SettingsError("--input and --output must be different files")
    lines = sum(1 for _ in read_lines(source))
    console = Console(stderr=True)
    asyncio.run(_require_gateway(connection))  # before the output file is touched
    answers = Answers(target, overwrite=overwrite)
    earlier = len(answers)
    try:
        waiting = _unanswered(source, answers)
        with _progress(console) as progress:
            tally = _BatchTally(answers, progress, lines, earlier)
            asyncio.run(_run(connection, waiting, defaults, concurrency, tally))
    finally:
        answers.close()
    console.print(_summary(lines, earlier, tally, target), highlight=False, soft_wrap=True)
    if tally.failed:
        raise typer.Exit(1)


def _unanswered(source: Path, answers: Answers) -> Iterator[Line]:
    return (line for line in read_lines(source) if not answers.has(line))


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal)


async def _require_gateway(connection: Connection) -> None:
    async with connection.async_client() as client:
        await client.model()


async def _run(
    connection: Connection, lines: Iterator[Line], defaults: Mapping[str, Any], concurrency: int, tally: _BatchTally
) -> None:
    async with connection.async_client() as client:
        await answer_all(client, lines, defaults, concurrency=concurrency, done=tally.add)


def _summary(lines: int, earlier: int, tally: _BatchTally, target: Path) -> str:
    before = f", {earlier} of them by an earlier run" if earlier else ""
    failed = f"; {tally.failed} failed (their errors are in the file; the same command retries them)"
    return f"{lines - tally.failed} of {lines} lines answered in {target}{before}{failed if tally.failed else ''}"
