"""A rank whose engine hangs once it is told to, and whose process dies of one token: what no signal can bring about."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from outrider.workers.rank import Rank

DYING_S = 0.3  # in which gateways hear that the request has begun, however busy they are
POISON = 4093  # a reserved token of scout's vocabulary, which no text has
HANG_FILES = Path("/tmp"), "outrider-chaos-hang-"  # by pid


def hang(pid: int) -> None:
    """The next round of this rank's process does not end."""
    _file(pid).touch()


def heal() -> None:
    """Those that have not come to their next round never hang."""
    directory, prefix = HANG_FILES
    for file in directory.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)


def _file(pid: int) -> Path:
    directory, prefix = HANG_FILES
    return directory / f"{prefix}{pid}"


class TroubledRank(Rank):
    """A real rank otherwise."""

    def load(self, *arguments: Any) -> None:
        from outrider.workers.engine import runner

        forward, round_rows, told = runner.StageRunner.forward, runner.round_rows, _file(os.getpid())

        def dying_forward(stage: runner.StageRunner, round: Any, *others: Any) -> Any:
            computed = forward(stage, round, *others)
            if POISON in round.token_ids:
                time.sleep(DYING_S)
                os.kill(os.getpid(), signal.SIGKILL)
            return computed

        def hanging_rows(round: Any) -> Any:
            while told.exists():
                time.sleep(1.0)
            return round_rows(round)

        runner.StageRunner.forward = dying_forward  # type: ignore[method-assign]  # in this process alone
        runner.round_rows = hanging_rows
        told.unlink(missing_ok=True)
        super().load(*arguments)
