"""Messages to the engine's thread."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from outrider.workers.engine.handle import Deliver
from outrider.workers.types.request import Request
from outrider.workers.types.structured_outputs import StructuredOutputsParams


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request
    deliver: Deliver


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: str
    index: int | None  # None: all of the request's outputs


@dataclass(frozen=True, slots=True)
class Checked:
    """A request's grammar may be compiled by every rank, or why by none."""

    request: Request
    constraint: StructuredOutputsParams
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class GrammarPrepared:
    """A request's grammar can be followed from now on, or why it never can."""

    request: Request
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class StopEngine:
    reason: str


@dataclass(frozen=True, slots=True)
class Call:
    """Something to do between two rounds."""

    action: Callable[[], None]
    done: Future[None]

    def run(self) -> None:
        try:
            self.action()
        except Exception as error:  # whoever asked for it is told
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


Message = Submit | Cancel | Checked | GrammarPrepared | StopEngine | Call


class Inbox:
    """Thread-safe. Its one reader takes everything there is, or sleeps until there is something."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def put(self, message: Message) -> None:
        self._messages.put(message)

    def take(self, sleep: bool) -> list[Message]:
        """Every message so far, oldest first; with `sleep`, at least one."""
        taken = [self._messages.get()] if sleep else []
        while True:
            try:
                taken.append(self._messages.get_nowait())
            except queue.Empty:
                return taken
