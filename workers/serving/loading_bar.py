"""Shows a progress bar on stderr while a model loads, if stderr is a terminal and loading takes over a second."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

A_MOMENT_S = 1.0


class LoadingBar:
    """A context manager: `show` draws the bar, and leaving the context removes it."""

    def __init__(
        self, model: str, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("loading {task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._model, self._clock, self._began_at = model, clock, clock()
        self._task: TaskID | None = None

    def show(self, share: float) -> None:
        """`share`: how much the slowest rank has loaded, 0..1."""
        if self._task is None:
            if self._clock() - self._began_at < A_MOMENT_S:
                return
            self._task = self._progress.add_task(self._model, total=1.0)
            self._progress.start()
        self._progress.update(self._task, completed=share)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
