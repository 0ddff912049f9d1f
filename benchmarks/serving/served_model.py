"""Serves a model as a user would, for as long as a benchmark asks: `outrider serve` in a process of its own."""

import signal
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0


class Served:
    """A context manager. `process` and `address` are the server's; `exit_status` is there once it has been left."""

    def __init__(self, name: str, *options: str) -> None:
        """`name`: the cluster's; `options`: of `outrider serve`."""
        command = [
            sys.executable,
            "-m",
            "outrider.cluster.cli",
            "serve",
            "--port",
            "0",
            "--http-port",
            "0",
            "--ray-address",
            "local",
        ]
        self.exit_status: int | None = None
        command += ["--http-port", "0"]  # an option that is given again wins
        self.process = subprocess.Popen([*command, "--name", name, *options], stdout=subprocess.PIPE, text=True)
        self.address = self._address()

    def _address(self) -> str:
        """From the line that says that it serves. RuntimeError if it does not come."""
        assert self.process.stdout is not None
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if " on " not in line:
            self.process.kill()
            raise RuntimeError(f"outrider serve did not start: {line.strip() or 'see above'}")
        return line.split(" on ")[1].split(",")[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.exit_status = self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
