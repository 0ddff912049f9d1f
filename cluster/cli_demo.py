"""`outrider demo`: a two-stage cluster on this machine, a comparison of speculation off and auto, and nothing left."""

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from outrider.cluster.cli_serve import LoadingView, ending_on_signals
from outrider.cluster.client import Client
from outrider.cluster.config import ServeSettings, load_settings
from outrider.cluster.demo import Delta, Task, affordable_tokens, ask, load_tasks, measure, warm_up
from outrider.cluster.demo_report import DemoReport, Run, differing, make_report
from outrider.cluster.demo_view import DRAFTED, coloured, table, verdict
from outrider.cluster.serve import ServedCluster, make_charge
from outrider.workers.config import resolve_model
from outrider.workers.errors import OutriderError
from outrider.workers.text.tokenizer import Tokenizer

STAGES = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """How much to ask at most."""

    max_tokens: int  # of each request
    repeats: int


def run_demo(json_file: Path, *, model: str, prompts: int, max_tokens: int, repeats: int, log_level: str) -> None:
    """OutriderError if it cannot run, was interrupted, or if speculation changed a text."""
    options = {"model": model, "pipeline_parallel_size": STAGES, "port": 0, "ray_address": "local"}
    settings = load_settings(options={**options, "name": f"demo-{os.getpid()}"})
    tasks = load_tasks(prompts)
    _refuse_unwritable(json_file)
    runs, sample = _serve_and_measure(settings, tasks, Extent(max_tokens, repeats), log_level)
    report = make_report(model, STAGES, runs)
    json_file.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    _show(report, sample, _sample_task(tasks), model, json_file)
    if not report.identical:
        where = ", ".join(f"{domain} prompt {prompt}" for domain, prompt in differing(runs))
        raise OutriderError(f"speculation changed the text of {where}: please report this")


def _refuse_unwritable(path: Path) -> None:
    """Known before minutes are spent."""
    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutriderError(f"cannot write {path}: choose another --json")


def _serve_and_measure(
    settings: ServeSettings, tasks: list[Task], extent: Extent, log_level: str
) -> tuple[list[Run], list[Delta]]:
    charge = make_charge(settings)
    cluster = ServedCluster(settings, charge, dashboard=False, log_level=log_level)
    with ending_on_signals(cluster.stop, cluster.hurry), contextlib.closing(cluster):
        with LoadingView(charge.model_name, charge.plan) as view:
            cluster.start(view.show)
        _refuse_interrupted(cluster)
        with Client(cluster.address) as client:
            runs = _measure(cluster, client, tasks, extent)
            sample: list[Delta] = []
            ask(client, _sample_task(tasks), "auto", 0, extent.max_tokens, sample.append)
        return runs, sample


def _sample_task(tasks: list[Task]) -> Task:
    """The text to look at: a sampled one, where there is one, for it does not loop."""
    return next((task for task in tasks if task.temperature > 0), tasks[0])


def _measure(cluster: ServedCluster, client: Client, tasks: list[Task], extent: Extent) -> list[Run]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    runs: list[Run] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("warming up", total=None)
        tokens = affordable_tokens(warm_up(client, tasks), len(tasks), extent.max_tokens)
        for run in measure(client, tasks, tokens, extent.repeats):
            cluster.check()
            _refuse_interrupted(cluster)
            runs.append(run)
            passes, step = divmod(len(runs), 2 * len(tasks))
            progress.update(bar, description=f"pass {passes + 1}, {run.domain}", total=2 * len(tasks), completed=step)
    return runs


def _refuse_interrupted(cluster: ServedCluster) -> None:
    if cluster.stop.is_set():
        raise OutriderError("interrupted")


def _show(report: DemoReport, sample: list[Delta], task: Task, model: str, json_file: Path) -> None:
    console = Console()
    console.print(table(report))
    console.print(verdict(report))
    tokenizer = Tokenizer.load(resolve_model(model))
    if tokenizer is not None:
        title = f"a text with its accepted drafts in [{DRAFTED}]{DRAFTED}[/]"
        console.print(Panel(Group(coloured(task.text, sample, tokenizer)), title=title))
    print(f"figures in {json_file}", file=sys.stderr)  # noqa: T201  # what the user is to read
