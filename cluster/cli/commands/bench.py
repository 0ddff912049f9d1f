"""`outrider bench`: measures a gateway at given rates and speculation settings; prints a table and writes JSON."""

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.cli.connection import Connection
from outrider.cluster.cli.output_file import refuse_unwritable
from outrider.cluster.client.bench import SEED, Window, arrivals, load, warm_up
from outrider.workers.types.errors import OutriderError

_MOST = 100_000  # requests per second, or seconds
_TIMES = {"first_token_s": "first token", "between_tokens_s": "per token", "end_to_end_s": "whole"}


def windows(
    rates: Sequence[float], speculations: Sequence[str], *, seconds: float, max_tokens: int, temperature: float
) -> list[Window]:
    """All combinations of rate and speculation. Raises SettingsError, which names an invalid value."""
    try:
        for name, value in (*(("rate", rate) for rate in rates), ("seconds", seconds)):
            if not 0 < value <= _MOST:  # also true of NaN
                raise ValueError(f"{name} must be above 0 and at most {_MOST}, got {value:g}")
        made = [
            Window(
                rate=rate,
                seconds=seconds,
                speculation=int(spoken) if spoken.isdecimal() else spoken,
                max_tokens=max_tokens,
                temperature=temperature,
            )
            for rate, spoken in itertools.product(rates, speculations)
        ]
        for window in made:
            window.params(0)
        return made
    except ValueError as error:
        raise SettingsError(str(error)) from error


def run_bench(connection: Connection, planned: Sequence[Window], json_file: Path | None) -> None:
    """Exits with status 1 if a request failed, after everything was measured and shown."""
    if json_file is not None:
        refuse_unwritable(json_file, "--json")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        figures = asyncio.run(_measure(connection, planned, progress))
    Console().print(table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps({"seed": SEED, "windows": figures}, indent=1) + "\n")
    failed = sum(sum(window["errors"].values()) for window in figures)
    if failed:
        kinds = sorted({kind for window in figures for kind in window["errors"]})
        raise OutriderError(f"{failed} requests failed: {', '.join(kinds)}")


async def _measure(connection: Connection, planned: Sequence[Window], progress: Progress) -> list[dict[str, Any]]:
    figures = []
    async with connection.async_client() as client:
        await client.model()  # fails early if the gateway cannot be reached
        for window in {one.speculation: one for one in planned}.values():
            await warm_up(client, window)
        for window in planned:
            due = len(arrivals(window.rate, window.seconds, SEED))
            bar = progress.add_task(f"{window.rate:g} requests/s, {window.speculation}", total=due)
            figures.append(await load(client, window, lambda bar=bar: progress.advance(bar)))  # type: ignore[misc]  # mypy has no types of defaults in a lambda
    return figures


def table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each window; times in milliseconds."""
    title = "milliseconds: median / p99, from a request's scheduled arrival"
    view = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title=title)
    for heading in ("load", "drafts", "tokens/s", *_TIMES.values()):
        view.add_column(heading, no_wrap=True)
    for window in figures:
        view.add_row(*_row(window))
    return view


def _row(window: Mapping[str, Any]) -> Iterator[str]:
    yield f"{window['rate']:g}/s"
    yield str(window["speculation"])
    yield f"{window['tokens_per_second']:.0f}"
    for name in _TIMES:
        shown = (_milliseconds(window[name][key]) for key in ("p50", "p99")) if window[name] else ()
        yield " / ".join(shown)


def _milliseconds(seconds: float) -> str:
    """At least three significant digits."""
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
