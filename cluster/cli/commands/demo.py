"""`outrider demo`: compares speculation off and auto on a local two-stage cluster, and stops it again."""

import contextlib
import dataclasses
import json
import os
import platform
import sys
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import outrider
from outrider.cluster.api.status import WorkerStatus
from outrider.cluster.cli.commands.serve import LoadingView, ending_on_signals
from outrider.cluster.cli.output_file import refuse_unwritable
from outrider.cluster.client.client import Client
from outrider.cluster.config import ServeSettings, load_settings
from outrider.cluster.demo.page import make_replay, page
from outrider.cluster.demo.report import DemoReport, Run, differing, make_report
from outrider.cluster.demo.runs import Delta, DemoTask, affordable_tokens, ask, load_tasks, measure, warm_up
from outrider.cluster.demo.view import DRAFTED, coloured, table, verdict
from outrider.cluster.serve import ServedCluster, make_cluster_spec
from outrider.workers.config import resolve_model
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.errors import OutriderError

STAGES = 2


@dataclasses.dataclass(frozen=True, slots=True)
class DemoSize:
    """Limits of the measurement."""

    max_tokens: int  # of each request
    repeats: int


@dataclasses.dataclass(frozen=True, slots=True)
class DemoOutcome:
    """The results of the measurement."""

    runs: list[Run]
    samples: list[tuple[DemoTask, list[Delta]]]  # one output of each kind, with speculation auto
    ranks: tuple[WorkerStatus, ...]  # status at the end


def run_demo(
    json_file: Path, *, report_file: Path | None, model: str, prompts: int, extent: DemoSize, log_level: str
) -> None:
    """Raises OutriderError if it cannot run, was interrupted, or if speculation changed an output."""
    options = {"model": model, "pipeline_parallel_size": STAGES, "port": 0, "http_port": 0, "ray_address": "local"}
    settings = load_settings(options={**options, "name": f"demo-{os.getpid()}"})
    tasks = load_tasks(prompts)
    refuse_unwritable(json_file, "--json")
    if report_file is not None:
        refuse_unwritable(report_file, "--report")
    outcome = _serve_and_measure(settings, tasks, extent, log_level)
    report = make_report(model, STAGES, outcome.runs)
    json_file.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    tokenizer = Tokenizer.load(resolve_model(model))
    if report_file is not None and tokenizer is not None:
        report_file.write_text(_page(report, outcome, tokenizer), "utf-8")
    _show(report, outcome, tokenizer, [json_file, *([report_file] if report_file else [])])
    if not report.identical:
        where = ", ".join(f"{domain} prompt {prompt}" for domain, prompt in differing(outcome.runs))
        raise OutriderError(f"speculation changed the text of {where}: please report this")


def _serve_and_measure(settings: ServeSettings, tasks: list[DemoTask], extent: DemoSize, log_level: str) -> DemoOutcome:
    spec = make_cluster_spec(settings)
    cluster = ServedCluster(settings, spec, dashboard=False, log_level=log_level)
    with ending_on_signals(cluster.stop, cluster.cancel_running), contextlib.closing(cluster):
        with LoadingView(spec.model_name, spec.plan) as view:
            cluster.start(view.show)
        _refuse_interrupted(cluster)
        with Client(cluster.address) as client:
            runs = _measure(cluster, client, tasks, extent)
            samples = [_sample(client, task, extent.max_tokens) for task in _one_of_each(tasks)]
            return DemoOutcome(runs, samples, client.status().replicas[0].ranks)


def _one_of_each(tasks: list[DemoTask]) -> list[DemoTask]:
    """The tasks to show: sampled ones first, since greedy output repeats itself."""
    each = {task.domain: task for task in reversed(tasks)}
    return sorted(each.values(), key=lambda task: -task.temperature)


def _sample(client: Client, task: DemoTask, max_tokens: int) -> tuple[DemoTask, list[Delta]]:
    deltas: list[Delta] = []
    ask(client, task, "auto", 0, max_tokens, deltas.append)
    return task, deltas


def _measure(cluster: ServedCluster, client: Client, tasks: list[DemoTask], extent: DemoSize) -> list[Run]:
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


def _page(report: DemoReport, outcome: DemoOutcome, tokenizer: Tokenizer) -> str:
    replays = [make_replay(task.domain, task.text, deltas, tokenizer) for task, deltas in outcome.samples]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return page(report, replays, outcome.ranks, outrider.__version__, machine)


def _show(report: DemoReport, outcome: DemoOutcome, tokenizer: Tokenizer | None, files: list[Path]) -> None:
    console = Console()
    console.print(table(report))
    console.print(verdict(report))
    if tokenizer is not None:
        title = f"a text with its accepted drafts in [{DRAFTED}]{DRAFTED}[/]"
        task, deltas = outcome.samples[0]
        console.print(Panel(Group(coloured(task.text, deltas, tokenizer)), title=title))
    print(f"figures in {' and '.join(map(str, files))}", file=sys.stderr)  # noqa: T201  # what the user is to read
