"""Asks a served cluster's controller how things stand, and outlives it: replicas and gateways serve without one.

Knows nothing of Ray: asking and starting another are told by whoever makes this.
"""

import logging
from collections.abc import Callable

from outrider.cluster.controller.report import Report
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.serve")


class ControllerSilentError(OutriderError):
    """It did not answer in time, or cannot be reached: it may be back."""


class ControllerDiedError(OutriderError):
    """It has ended, and nothing restarts it."""


class ControllerWatch:
    """For a cluster that has been ready."""

    def __init__(self, ask: Callable[[], Report], start_another: Callable[[], None], last: Report) -> None:
        """`ask`: ControllerSilentError or ControllerDiedError without an answer. `start_another`: OutriderError if it
        cannot. `last`: what the controller said last."""
        self._ask, self._start_another, self._last = ask, start_another, last
        self.lost = ""  # why it does not answer; empty while it does

    def report(self) -> Report:
        """How things stand, or stood when the controller last answered."""
        try:
            self._last = self._ask()
            if self.lost:
                log.warning("the controller answers again")
            self.lost = ""
        except ControllerSilentError as error:
            self._note(f"{error}: replicas and gateways serve on, and nothing that fails is replaced meanwhile")
        except ControllerDiedError as error:
            self._note(f"{error}: another is started, which goes on with the replicas")
            try:
                self._start_another()
            except OutriderError as problem:
                self._note(f"no other controller could be started: {problem}")
        return self._last

    def _note(self, problem: str) -> None:
        """Once for each kind."""
        if problem != self.lost:
            log.warning("%s", problem)
        self.lost = problem
