"""`outrider serve`: the terminal's side of a served cluster: progress, the ready line, signals."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from outrider.cluster.config import ServeSettings
from outrider.cluster.controller import Report
from outrider.cluster.plan import ShardPlan
from outrider.cluster.reconcile import Phase
from outrider.cluster.serve import ServedCluster, make_charge

WATCH_EVERY_S = 1.0


def run_serve(settings: ServeSettings, *, log_level: str) -> None:
    """Serves until SIGTERM or SIGINT, then drains. OutriderError if it cannot serve; nothing is left either way."""
    charge = make_charge(settings)
    cluster = ServedCluster(settings, charge, dashboard=True, log_level=log_level)
    with ending_on_signals(cluster.stop, cluster.hurry), contextlib.closing(cluster):
        with LoadingView(charge.model_name, charge.plan) as view:
            started = cluster.start(view.show)
        if started:
            for line in warnings(settings, cluster.check()):
                print(f"warning: {line}", file=sys.stderr)  # noqa: T201  # what the user is to read
            _say(_ready_line(cluster, settings, charge.plan))
            _watch(cluster)


def warnings(settings: ServeSettings, report: Report) -> list[str]:
    """What works otherwise than was asked for, a line each."""
    if settings.speculation != "off" and not report.has_mtp:
        return [f"{settings.model} has no MTP weights: serving without MTP drafts"]
    return []


def _watch(cluster: ServedCluster) -> None:
    """Until told to stop. A replica that failed is reported once, and stays visible in `outrider status`."""
    told = False
    while not cluster.stop.wait(WATCH_EVERY_S):
        report = cluster.check()
        if report.phase is Phase.FAILED and not told:
            told = True
            print(f"error: {report.problem}; requests are refused until this is restarted", file=sys.stderr)  # noqa: T201


def _ready_line(cluster: ServedCluster, settings: ServeSettings, plan: ShardPlan) -> str:
    stages, ranks = len(plan.layer_splits), plan.world_size
    shape = "1 stage" if stages == 1 else f"{stages} stages"
    shape += f", {ranks} ranks" if ranks != stages else ""
    dashboard = f" (Ray dashboard: http://{cluster.dashboard_url})" if cluster.dashboard_url else ""
    return f"ready: {settings.model} on {cluster.address}, {shape}, speculation {settings.speculation}{dashboard}"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # what the user is to read


@contextlib.contextmanager
def ending_on_signals(stop: threading.Event, hurry: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`, a second one `hurry`."""

    def handle(number: int, frame: FrameType | None) -> None:
        (hurry if stop.is_set() else stop).set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class LoadingView:
    """One bar a rank while the model loads; on a terminal only."""

    def __init__(self, model: str, plan: ShardPlan) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: list[TaskID] = [
            self._progress.add_task(f"{model} {plan.describe(rank)}", total=1.0, state="starting")
            for rank in range(plan.world_size)
        ]

    def __enter__(self) -> "LoadingView":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, report: Report) -> None:
        for rank, (loaded, state) in enumerate(zip(report.loaded, report.states, strict=True)):
            self._progress.update(self._tasks[rank], completed=loaded, state=state)
