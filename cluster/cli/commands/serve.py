"""`outrider serve`: runs a cluster from a terminal, with progress bars, a ready line and signal handling."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from outrider.cluster.config import ServeSettings
from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.replicas.report import ReplicaReport, Report
from outrider.cluster.planning.shard_plan import ShardPlan
from outrider.cluster.serve import ServedCluster, make_cluster_spec

WATCH_EVERY_S = 1.0
STOPPING = "stopping: waiting for running requests (Ctrl-C again cancels them)"


def run_serve(settings: ServeSettings, *, log_level: str) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Raises OutriderError if it cannot serve. Always stops everything."""
    spec = make_cluster_spec(settings)
    cluster = ServedCluster(settings, spec, dashboard=True, log_level=log_level)
    with ending_on_signals(cluster.stop, cluster.cancel_running), contextlib.closing(cluster):
        with LoadingView(spec.model_name, spec.plan) as view:
            started = cluster.start(view.show)
        if started:
            for line in warnings(settings, cluster.check()):
                print(f"warning: {line}", file=sys.stderr)  # noqa: T201  # what the user is to read
            _print_line(_ready_line(cluster, settings, spec.plan))
            _watch(cluster)
        if sys.stderr.isatty():
            print(STOPPING, file=sys.stderr)  # noqa: T201  # what the user is to read


def warnings(settings: ServeSettings, report: Report) -> list[str]:
    """A line for each setting that has no effect."""
    if settings.speculation != "off" and not report.has_mtp:
        return [f"{settings.model} has no MTP weights: serving without MTP drafts"]
    return []


def _watch(cluster: ServedCluster) -> None:
    """Prints each event of a replica once, until `cluster.stop` is set."""
    printed: tuple[str, ...] = ()
    while not cluster.stop.wait(WATCH_EVERY_S):
        lines = tuple(_event_line(replica) for replica in cluster.check().replicas)
        for line in lines:
            if line and line not in printed:
                print(f"warning: {line}", file=sys.stderr)  # noqa: T201  # what the user is to read
        printed = lines


def _event_line(replica: ReplicaReport) -> str:
    if replica.phase is Phase.FAILED:
        return f"replica {replica.name} ended ({replica.problem}): its requests continue on others, and it is restarted"
    if replica.waiting:
        return f"replica {replica.name} waits for resources: {replica.waiting}"
    return f"replica {replica.name} is removed when another is ready: {replica.eviction}" if replica.eviction else ""


def _ready_line(cluster: ServedCluster, settings: ServeSettings, plan: ShardPlan) -> str:
    stages, ranks = len(plan.layer_splits), plan.world_size
    shape = "1 stage" if stages == 1 else f"{stages} stages"
    shape += f", {ranks} ranks" if ranks != stages else ""
    replicas = "" if settings.replicas == 1 else f"{settings.replicas} replicas of "
    dashboard = f" (Ray dashboard: http://{cluster.dashboard_url})" if cluster.dashboard_url else ""
    speculation = f"speculation {settings.speculation}{dashboard}"
    http = f"{cluster.http_url}, " if cluster.http_url else ""
    return f"ready: {settings.model} on {cluster.address}, {http}{replicas}{shape}, {speculation}"


def _print_line(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # what the user is to read


@contextlib.contextmanager
def ending_on_signals(stop: threading.Event, cancel_running: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`; a second signal sets `cancel_running`."""

    def handle(number: int, frame: FrameType | None) -> None:
        (cancel_running if stop.is_set() else stop).set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class LoadingView:
    """One progress bar per rank while the model loads; on a terminal only."""

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
        self._names = [f"{model} {plan.describe(rank)}" for rank in range(plan.world_size)]
        self._tasks: dict[tuple[str, int], TaskID] = {}  # by replica and rank

    def __enter__(self) -> "LoadingView":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, report: Report) -> None:
        for replica in report.replicas:
            for rank, (loaded, state) in enumerate(zip(replica.loaded, replica.states, strict=True)):
                task = self._task(replica.name, rank, several=len(report.replicas) > 1)
                waits = f"waits for resources: {replica.waiting}" if replica.waiting else state
                self._progress.update(task, completed=loaded, state=waits)

    def _task(self, replica: str, rank: int, *, several: bool) -> TaskID:
        if (replica, rank) not in self._tasks:
            name = f"{replica} {self._names[rank]}" if several else self._names[rank]
            self._tasks[replica, rank] = self._progress.add_task(name, total=1.0, state="starting")
        return self._tasks[replica, rank]
