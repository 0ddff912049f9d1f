"""Messages to the engine's thread."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from outrider.workers.engine.handle import Deliver
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams


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
    """The result of a grammar check: None if the grammar may be compiled, else the error."""

    request: Request
    constraint: StructuredOutputsParams
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class GrammarPrepared:
    """The result of compiling a request's grammar: None if it is ready, else the error."""

    request: Request
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class StopEngine:
    reason: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function to run between two rounds."""

    action: Callable[[], None]
    done: Future[None]

    def run(self) -> None:
        try:
            self.action()
        except Exception as error:  # re-raised to the caller by the Future
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


Message = Submit | Cancel | Checked | GrammarPrepared | StopEngine | Call


class Inbox:
    """A thread-safe queue with one reader, which takes all messages at once."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def put(self, message: Message) -> None:
        self._messages.put(message)

    def take(self, sleep: bool) -> list[Message]:
        """All queued messages, oldest first. With `sleep`, blocks until there is at least one."""
        taken = [self._messages.get()] if sleep else []
        while True:
            try:
                taken.append(self._messages.get_nowait())
            except queue.Empty:
                return taken
