"""A rank that can hang in a round, and that is killed by one token: faults that no signal can cause."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from outrider.workers.serving.rank import Rank

POISON = 4093  # a reserved token of scout's vocabulary, which no text contains
KILL_DELAY_S = 0.3  # so that gateways hear that the request has begun, even when they are busy
HANG_POLL_S = 1.0
# One file for each pid that is to hang, empty until it does; then with the time.
_FOLDER, _PREFIX = Path("/tmp"), "outrider-chaos-hang-"


def hang(pid: int) -> None:
    """This rank's process hangs in its next round."""
    _hang_file(pid).touch()


def hung_at(pid: int) -> float | None:
    """When it began to hang, by time.monotonic(); None if it has had no round to hang in."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return float(_hang_file(pid).read_text())
    return None


def clear_hangs() -> None:
    """Ranks that hang go on, and those that have not reached their next round do not hang in it."""
    for file in _FOLDER.glob(f"{_PREFIX}*"):
        file.unlink(missing_ok=True)


def _hang_file(pid: int) -> Path:
    return _FOLDER / f"{_PREFIX}{pid}"


class FaultyRank(Rank):
    """A real rank, apart from the two faults."""

    def load(self, *arguments: Any) -> None:
        from outrider.workers.engine.execution import runner

        forward, round_rows, hang_file = runner.StageRunner.forward, runner.round_rows, _hang_file(os.getpid())

        def forward_killed_by_poison(stage: runner.StageRunner, round: Any, *others: Any) -> Any:
            computed = forward(stage, round, *others)
            if POISON in round.token_ids:
                time.sleep(KILL_DELAY_S)
                os.kill(os.getpid(), signal.SIGKILL)
            return computed

        def hanging_round_rows(round: Any) -> Any:
            if hang_file.exists():
                hang_file.write_text(str(time.monotonic()))
            while hang_file.exists():
                time.sleep(HANG_POLL_S)
            return round_rows(round)

        runner.StageRunner.forward = forward_killed_by_poison  # type: ignore[method-assign]  # in this process alone
        runner.round_rows = hanging_round_rows
        hang_file.unlink(missing_ok=True)  # of an earlier process with this pid
        super().load(*arguments)
