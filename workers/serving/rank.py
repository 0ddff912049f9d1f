"""One rank: joins its replica's process group, loads its layers, and runs rounds until it is stopped.

The same class runs in this process (LLM), as a local process (`python -m outrider.workers.serving.rank`, see local.py)
and inside a Ray actor (actor.py). Its rank number and its peers come from the RankSpec, not from the environment.
"""

import contextlib
import dataclasses
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from outrider.workers.engine.handle import EngineHandle
from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.serving.observability.request_times import Observation
from outrider.workers.serving.rank_status import STATUS_EVERY_S, RankStatus
from outrider.workers.types.errors import OutriderError

if TYPE_CHECKING:
    from outrider.workers.serving.roles import Follower, Leader

log = logging.getLogger("outrider.rank")


class Rank:
    """Call `load`, then `run`, from one thread. `stop` and `status` may be called from any thread."""

    def __init__(self, spec: RankSpec) -> None:
        self.spec = spec
        self._status = RankStatus()
        self._ready_at = 0.0
        self._role: Leader | Follower | None = None

    def load(self, on_progress: Callable[[float], None] = lambda share: None) -> None:
        """Joins the process group and loads the weights; blocks. Raises OutriderError or ValueError on failure.

        `on_progress` is called with the share of weights loaded, 0..1, from the loading thread.
        """

        def loaded(share: float) -> None:
            self._update(loaded=share)
            on_progress(share)

        with self._failing(OutriderError, ValueError):
            from outrider.workers.serving.build import load_role  # imports torch, which the controller must not

            self._role = load_role(self.spec, loaded, self._give_up)

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Warms up, calls `on_ready`, serves until stopped. If a rank fails, raises EngineStoppedError naming it."""
        assert self._role is not None, "load() comes first"

        def ready(service_address: str) -> None:
            self._on_ready(service_address)
            on_ready()

        with self._failing(OutriderError):
            self._role.run(ready)

    def stop(self, reason: str = "the engine was stopped") -> None:
        """On the leader: makes `run` return on every rank."""
        if self._role is not None:
            self._role.stop(reason)

    @property
    def engine(self) -> EngineHandle:
        """The leader's engine. Fails on other ranks and before `load`."""
        engine = self._role.engine if self._role is not None else None
        assert engine is not None, "only a loaded leader has an engine"
        return engine

    def take_observations(self) -> list[Observation]:
        """Requests that ended since the last call; always empty on other ranks than the leader."""
        return self._role.times.take() if self._role is not None else []

    def status(self) -> RankStatus:
        if self._role is None or self._status.state != "ready":
            return self._status
        return dataclasses.replace(
            self._status,
            busy_s=self._role.busy_s,
            draft_s=self._role.draft_s,
            held_up_s=self._role.held_up_s,
            elapsed_s=time.monotonic() - self._ready_at,
            stall=self._role.stall,
            computing_s=self._role.computing_s,
            counters=self._role.counters,
            traffic=self._role.traffic,
            carriers=self._role.carriers,
        )

    def _on_ready(self, service_address: str) -> None:
        self._ready_at = time.monotonic()
        info = self._role.engine.info if self._role is not None and self._role.engine is not None else None
        self._update(state="ready", loaded=1.0, service_address=service_address, info=info)

    def _give_up(self, reason: str) -> None:
        """Ends the process: its device is waiting for another rank, and that wait cannot be cancelled."""
        error = f"{self.spec.describe(self.spec.rank)}: {reason}"
        log.error("%s", error)
        self._update(state="failed", error=error)
        time.sleep(1.5 * STATUS_EVERY_S)  # time to report the status before the process exits
        os._exit(1)

    def _update(self, **changes: Any) -> None:
        self._status = dataclasses.replace(self._status, **changes)

    @contextlib.contextmanager
    def _failing(self, *explained: type[Exception]) -> Iterator[None]:
        """Records an exception in the status; the rank and the exception's type are added if it is not `explained`."""
        try:
            yield
        except explained as error:
            self._update(state="failed", error=str(error))
            raise
        except Exception as error:
            self._update(state="failed", error=f"{self.spec.describe(self.spec.rank)}: {type(error).__name__}: {error}")
            raise


def main() -> int:
    """A rank as a local process: its spec is one line on stdin, its statuses are lines on stdout.

    It ends when its stdin closes, which happens even if the parent is killed.
    """
    logging.basicConfig(level=os.environ.get("OUTRIDER_LOG_LEVEL", "WARNING"), stream=sys.stderr)
    statuses = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # anything printed to stdout goes to stderr
    rank = Rank(RankSpec.from_json(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_report, args=(rank, statuses), daemon=True).start()
    try:
        rank.load()
        rank.run()
    except OutriderError as error:
        log.debug("rank %d ended: %s", rank.spec.rank, error)
        return 1
    except Exception:
        log.exception("rank %d failed", rank.spec.rank)
        return 1
    finally:
        statuses.write(rank.status().to_json() + "\n")
    return 0


def _report(rank: Rank, statuses: TextIO) -> None:
    """Writes the status every second (more often while loading); without it the parent takes this process as frozen."""
    while True:
        statuses.write(rank.status().to_json() + "\n")
        time.sleep(STATUS_EVERY_S if rank.status().state == "ready" else STATUS_EVERY_S / 10)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
