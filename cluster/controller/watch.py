"""Polls the controller and replaces it if it died. Replicas and gateways continue to serve meanwhile.

Independent of Ray: the functions that call and restart the controller are passed in.
"""

import logging
from collections.abc import Callable

from outrider.cluster.controller.replicas.report import Report
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.serve")


class ControllerSilentError(OutriderError):
    """The controller did not answer in time or cannot be reached, which may be temporary."""


class ControllerDiedError(OutriderError):
    """The controller has ended, and Ray does not restart it."""


class ControllerWatch:
    """Use it once the cluster was ready."""

    def __init__(self, poll: Callable[[], Report], start_another: Callable[[], None], last: Report) -> None:
        """`poll`: calls the controller; raises ControllerSilentError or ControllerDiedError if there is no answer.

        `start_another`: starts a new controller, or raises OutriderError. `last`: the last report.
        """
        self._poll, self._start_another, self._last = poll, start_another, last
        self.lost = ""  # why the controller does not answer; empty while it does

    def report(self) -> Report:
        """The current report, or the last one if the controller does not answer."""
        try:
            self._last = self._poll()
            if self.lost:
                log.warning("the controller answers again")
            self.lost = ""
        except ControllerSilentError as error:
            self._note(f"{error}: replicas and gateways continue to serve, but failed ones are not replaced")
        except ControllerDiedError as error:
            self._note(f"{error}: starting another, which adopts the replicas")
            try:
                self._start_another()
            except OutriderError as problem:
                self._note(f"cannot start another controller: {problem}")
        return self._last

    def _note(self, problem: str) -> None:
        """Logs a problem once."""
        if problem != self.lost:
            log.warning("%s", problem)
        self.lost = problem
