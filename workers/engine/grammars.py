"""Grammars of requests that are not scheduled yet: each is checked, then compiled, in other threads.

Results come back through the engine's inbox. The engine's thread calls every method.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from outrider.workers.engine.inbox import Checked, GrammarPrepared, Inbox
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

Prepare = Callable[[StructuredOutputsParams], "Future[Any]"]


class Grammars:
    """Starts checks and compilations, and collects the grammars that the sampler's rank must compile too."""

    def __init__(self, inbox: Inbox, check: Prepare | None, prepare: Prepare | None) -> None:
        """`check` tests whether a grammar may be compiled; `prepare` compiles it. None skips that step."""
        self._inbox, self._check, self._prepare = inbox, check, prepare
        self._checks: dict[str, Future[Any]] = {}  # running, by request
        self._to_prepare: list[StructuredOutputsParams] = []

    def start(self, request: Request) -> bool:
        """Whether the request must wait for its grammar, whose check starts now."""
        constraint = request.params.structured_outputs
        if constraint is None or self._prepare is None:
            return False
        if self._check is None:
            self._compile(request, constraint)
        else:
            check = self._checks[request.request_id] = self._check(constraint)
            check.add_done_callback(partial(self._checked, request, constraint))
        return True

    def _checked(self, request: Request, constraint: StructuredOutputsParams, check: "Future[Any]") -> None:
        """Called when a check ends or is cancelled, in any thread."""
        if not check.cancelled():
            self._inbox.put(Checked(request, constraint, check.exception()))

    def cancel_check(self, request_id: str) -> None:
        """Does nothing if there is no check."""
        if (check := self._checks.pop(request_id, None)) is not None:
            check.cancel()

    def compile_checked(self, checked: Checked) -> bool:
        """Whether the check found no error, so that the grammar is being compiled."""
        self._checks.pop(checked.request.request_id, None)
        if checked.error is None:
            self._compile(checked.request, checked.constraint)
        return checked.error is None

    def _compile(self, request: Request, constraint: StructuredOutputsParams) -> None:
        assert self._prepare is not None
        self._to_prepare.append(constraint)
        self._prepare(constraint).add_done_callback(
            lambda done: self._inbox.put(GrammarPrepared(request, done.exception()))
        )

    def take(self) -> tuple[StructuredOutputsParams, ...]:
        """Those that the sampler's rank has not been sent yet."""
        taken, self._to_prepare = tuple(self._to_prepare), []
        return taken
