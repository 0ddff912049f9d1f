"""Terminal output of `outrider distill`: progress bars while it runs, then tables of results."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from outrider.workers.training.distill.run import Listener

_GIB = 2**30


class DistillView(Listener):
    """Shows progress on stderr, and results on stdout."""

    def __init__(self) -> None:
        self._out, errors = Console(), Console(stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def began(self, part: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(part, total=None, note="")

    def harvested(self, done: int, total: int) -> None:
        self._update(completed=done, total=total)

    def trained(self, report: dict[str, Any]) -> None:
        measured = report.get("train") or report.get("held_out")
        note = {"note": f"loss {_numbers(measured['loss'])}"} if measured else {}
        self._update(completed=report["step"], total=report["steps"], **note)

    def measuring(self, what: str) -> None:
        self._update(description=what)

    def found(self, part: str, result: dict[str, Any]) -> None:
        self._out.print(_SHOW[part](result))

    def _update(self, **values: Any) -> None:
        assert self._task is not None, "a part has begun"
        self._progress.update(self._task, **values)


def show_footprints(found: dict[str, Any]) -> None:
    """The dry run's tables."""
    console = Console()
    console.print(found["module"])
    sizes = found["footprints"]
    table = Table("GiB on every GPU", *(f"{each['world_size']} GPUs" for each in sizes), title=found["settings"])
    for part in sizes[0]["gpu"]:
        table.add_row(part, *(f"{each['gpu'][part] / _GIB:.2f}" for each in sizes))
    table.add_section()
    table.add_row("all", *(f"{sum(each['gpu'].values()) / _GIB:.2f}" for each in sizes))
    table.add_row("host memory, for each GPU", *(f"{sum(each['host'].values()) / _GIB:.2f}" for each in sizes))
    console.print(table)


def _harvest(result: dict[str, Any]) -> str:
    return f"harvested {result['texts']} texts with {result['tokens']} generated tokens, in {result['folder']}"


def _training(result: dict[str, Any]) -> Table | str:
    if not result["held_out"]:
        return f"trained tensors are in {result['trained']}"
    table = Table("step", "loss by draft", "overlap", "same likeliest token", title="held-out text")
    for look in (result["held_out"][0], result["held_out"][-1]):
        table.add_row(str(look["step"]), *(_numbers(look[name]) for name in ("loss", "overlap", "agreement")))
    return table


def _export(result: dict[str, Any]) -> str:
    return f"{result['out']}: {result['summary']}"


def _head(result: dict[str, Any]) -> Table:
    table = Table("head", "tokens", "share of text", "draft time saved", "tokens/round", "speed", title="reduced heads")
    for name, size in result["sizes"].items():
        mark = " (chosen)" if name == result["chosen"] else ""
        shares = (f"{size['coverage']:.3f}", f"{size['draft_time_saved']:.0%}")
        table.add_row(
            name + mark, str(size["tokens"]), *shares, f"{size['tokens_per_round']:.3f}", f"{size['gain']:.3f}"
        )
    return table


def _evaluation(result: dict[str, Any]) -> Table:
    title = f"held-out prompts, {result['depth']} drafts deep; speed-up over none, depth auto"
    table = Table("text", "", "accepted, each given those before", "tokens a round", "speed-up", title=title)
    for case in result["cases"]:
        for variant, drafts in case["drafts"].items():
            figures = (_numbers(drafts["acceptance"]), f"{drafts['tokens_per_round']:.2f}")
            table.add_row(case["case"], variant, *figures, f"{case['speedup'][variant]:.2f}")
    return table


_SHOW = {"harvest": _harvest, "train": _training, "export": _export, "head": _head, "evaluate": _evaluation}


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
