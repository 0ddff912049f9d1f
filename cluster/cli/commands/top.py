"""`outrider top`: each replica's speed and speculation figures, live."""

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from outrider.cluster.api.errors import UnavailableError
from outrider.cluster.api.status import ClusterStatus, EngineStatus, ReplicaStatus, SpeculationStatus
from outrider.cluster.cli.connection import Connection
from outrider.workers.types.errors import OutriderError

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = (
    *("replica", "state", "running", "waiting", "cache", "tokens/s", "", "rounds/s", "speculation", "speed-up"),
    *("draft\ndepth", "acceptance\nrate", "mean accepted\nlength", "price", "budget", "busy"),
)
_ANY_WIDTH = 10_000
_KEPT = 24  # number of samples in the curve
_STATE_STYLES = {"ready": "green", "failed": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rates of one replica between two samples. None: too little data."""

    tokens_per_s: float = 0.0
    rounds_per_s: float = 0.0
    draft_depth: float | None = None  # verified drafts per sequence and round
    acceptance_rate: float | None = None  # accepted / verified drafts
    mean_accepted_length: float | None = None  # tokens per sequence in a round with drafts


def rates(before: EngineStatus, after: EngineStatus, seconds: float) -> Rates:
    """The rates between two samples that are `seconds` apart."""
    tokens, rounds = after.generated_tokens - before.generated_tokens, after.rounds - before.rounds
    drafted, accepted = after.drafted - before.drafted, after.accepted - before.accepted
    drafts = after.speculation.drafts - before.speculation.drafts
    verifications = tokens - accepted  # each yields its accepted drafts and one more token
    if seconds <= 0 or min(tokens, rounds, drafted, accepted) < 0:  # the replica restarted
        return Rates()
    return Rates(
        tokens_per_s=tokens / seconds,
        rounds_per_s=rounds / seconds,
        draft_depth=drafted / verifications if verifications > 0 else None,
        acceptance_rate=accepted / drafted if drafted else None,
        mean_accepted_length=1.0 + accepted / drafts if drafts > 0 else None,
    )


@dataclass(slots=True)
class History:
    """Earlier samples of each replica, by name and generation."""

    clock: Callable[[], float] = time.monotonic
    _last: dict[tuple[str, int], tuple[float, EngineStatus]] = field(default_factory=dict)
    _speeds: dict[tuple[str, int], deque[float]] = field(default_factory=dict)

    def look(self, status: ClusterStatus) -> dict[str, tuple[Rates, tuple[float, ...]]]:
        """Each replica's rates since the last sample, and its recent tokens/s."""
        now, found = self.clock(), {}
        for replica in status.replicas:
            key = (replica.name, replica.generation)
            then, before = self._last.get(key, (now, replica.engine))
            seen = rates(before, replica.engine, now - then)
            speeds = self._speeds.setdefault(key, deque(maxlen=_KEPT))
            speeds.append(seen.tokens_per_s)
            self._last[key] = (now, replica.engine)
            found[replica.name] = (seen, tuple(speeds))
        return found


class Newest:
    """The newest status of a gateway's stream, which a thread reads."""

    def __init__(self, statuses: Iterator[ClusterStatus]) -> None:
        self._statuses: queue.SimpleQueue[ClusterStatus | OutriderError] = queue.SimpleQueue()
        self._known: ClusterStatus | None = None
        threading.Thread(target=self._read, args=(statuses,), name="statuses", daemon=True).start()

    def _read(self, statuses: Iterator[ClusterStatus]) -> None:
        try:
            for status in statuses:
                self._statuses.put(status)
            self._statuses.put(UnavailableError("the gateway ended the status stream"))
        except OutriderError as error:
            self._statuses.put(error)

    def get(self) -> ClusterStatus:
        """The newest status; waits for the first. Raises OutriderError if the stream has ended."""
        while self._known is None or not self._statuses.empty():
            newest = self._statuses.get()
            if isinstance(newest, OutriderError):
                raise newest
            self._known = newest
        return self._known


def run_top(connection: Connection, *, interval_s: float, looks: int | None) -> None:
    """Draws the newest status every `interval_s`, `looks` times or until interrupted."""
    console, history = Console(), History()
    with connection.client() as client, Live(console=console, auto_refresh=False, transient=False) as live:
        newest = Newest(client.watch_status())
        for number in itertools.count() if looks is None else range(looks):
            if number:
                time.sleep(interval_s)
            status = newest.get()
            live.update(view(status, history.look(status)), refresh=True)


def view(status: ClusterStatus, seen: Mapping[str, tuple[Rates, tuple[float, ...]]]) -> RenderableType:
    """One screen."""
    head = Text.assemble((status.name, "bold"), f" serves {status.model} (outrider {status.version})")
    problem = [Text(status.problem, style="red")] if status.problem else []
    return Group(head, *problem, _Figures([_row(replica, *seen[replica.name]) for replica in status.replicas]))


@dataclass(frozen=True, slots=True)
class _Figures:
    """A row per replica, or a column if the terminal is narrow."""

    rows: Sequence[Sequence[RenderableType]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self._table([_COLUMNS, *self.rows])
        needed = console.measure(wide, options=options.update(max_width=_ANY_WIDTH)).maximum
        names = [name.replace("\n", " ") for name in _COLUMNS]
        yield wide if needed <= options.max_width else self._table([*zip(names, *self.rows, strict=True)])

    @staticmethod
    def _table(rows: Sequence[Sequence[RenderableType]]) -> Table:
        """The first row is the header."""
        table = Table()
        for place, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if place else "left", no_wrap=True)
        for row in rows[1:]:
            table.add_row(*row)
        return table


def _row(replica: ReplicaStatus, now: Rates, speeds: tuple[float, ...]) -> list[RenderableType]:
    engine, speculation = replica.engine, replica.engine.speculation
    return [
        f"{replica.name}.{replica.generation}",
        Text(replica.state, style=_STATE_STYLES.get(replica.state, "yellow")),
        str(engine.running),
        str(engine.waiting),
        f"{engine.kv_cache_usage:.0%}",
        f"{now.tokens_per_s:.0f}",
        Text(curve(speeds), style="cyan"),
        f"{now.rounds_per_s:.0f}",
        _speculation(speculation),
        f"{speculation.speedup:.2f}x" if speculation.speedup else "-",
        _figure(now.draft_depth, ".1f"),
        _figure(now.acceptance_rate, ".0%"),
        _figure(now.mean_accepted_length, ".1f"),
        _figure(speculation.price or None, ".0f"),
        f"{speculation.budget:.1f}" if speculation.price else "-",
        "/".join(f"{rank.busy:.0%}" for rank in replica.ranks),
    ]


def _speculation(speculation: SpeculationStatus) -> Text:
    """The engine's setting, or for how many rounds drafting is disabled."""
    if speculation.disabled_rounds:
        return Text(f"disabled for {speculation.disabled_rounds}", style="yellow")
    return Text(speculation.setting or "-")


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def curve(values: Iterable[float]) -> str:
    """One block character per value, scaled to the largest."""
    listed = list(values)
    most = max(listed, default=0.0) or 1.0
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] for value in listed)
