"""`outrider` as a process of its own, and what of it is still there afterwards."""

import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

SOURCE = Path(__file__).parents[2] / "src"
MARK = "OUTRIDER_TEST_RUN"


class Outrider:
    """One run of the command. Whatever it starts inherits its mark, and is found by it."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, MARK: self.mark, "PYTHONPATH": str(SOURCE), **(environment or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "outrider.cluster.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.output: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=lines.extend, args=(stream,), daemon=True)
            for lines, stream in ((self.output, self.process.stdout), (self.errors, self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def wait_until_ready(self, within_s: float = 120.0) -> str:
        """The address in the ready line of `serve`."""
        until = time.monotonic() + within_s
        while not self.output:
            assert self.process.poll() is None, "".join(self.errors)
            assert time.monotonic() < until, f"not ready after {within_s} s"
            time.sleep(0.05)
        return self.output[0].split(" on ")[1].split(",")[0]

    def finish(self, within_s: float = 60.0) -> int:
        status = self.process.wait(within_s)
        for reader in self._readers:
            reader.join(60)
        return status

    def sockets_off_loopback(self) -> list[str]:
        """Where others than this machine's programs reach it, or what it started."""
        main = psutil.Process(self.process.pid)
        return [
            f"{process.name()} listens on {one.laddr.ip}:{one.laddr.port}"
            for process in [main, *main.children(recursive=True)]
            for one in process.net_connections("inet")
            if one.status == psutil.CONN_LISTEN and one.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")
        ]

    def child(self, word: str) -> psutil.Process:
        """The one process it started whose command line has this word."""
        (found,) = [one for one in psutil.Process(self.process.pid).children() if word in one.cmdline()]
        return found

    def left(self, within_s: float = 20.0) -> list[str]:
        """Command lines of live processes that carry the mark: none, soon after the run's end."""
        until = time.monotonic() + within_s
        while (found := self._marked()) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _marked(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


def is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0
