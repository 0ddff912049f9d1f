"""This process's connection to Ray: a running cluster, or one of its own that ends with it.

Turns what can go wrong with Ray (absent, not there, of another version) into one line each.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.ray")
NAMESPACE = "outrider"
CONNECT_TIMEOUT_S = 5.0
OBJECT_STORE_BYTES = 100 * 2**20  # nothing large ever goes through Ray
_DIRECTORY = "outrider-ray-"  # then the number of the process that owns it


class RaySession:
    """Ray from `open` to `close`. `dashboard` and `keep_logs` matter only where Ray is started here."""

    def __init__(self, address: str, *, dashboard: bool, keep_logs: bool = False) -> None:
        self._address, self._dashboard, self._keep_logs = address, dashboard, keep_logs
        self._directory: str | None = None
        self.dashboard_url = ""

    def open(self) -> None:
        """OutriderError, and nothing left running, if it cannot be."""
        ray = import_ray()
        found = self._find(ray)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            if found is None:
                self._start(ray)
            else:
                self._connect(ray, found)
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place
            _silence(ray)
        except (RuntimeError, ConnectionError, ValueError, OSError) as error:
            self.close()
            raise OutriderError(explain(error)) from error

    @property
    def is_own(self) -> bool:
        """Whether Ray was started here, and so ends here with all that runs on it."""
        return self._directory is not None

    def close(self) -> None:
        ray = import_ray()
        ray.shutdown()
        if self._directory is not None and self._keep_logs:
            log.warning("the logs of Ray and of the ranks are in %s", self._directory)
        elif self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None

    def _find(self, ray: ModuleType) -> str | None:
        """The address to connect to; None: start a cluster. OutriderError if the one that was named is not there."""
        if self._address == "local":
            return None
        if self._address != "auto":
            return _answering(self._address, "see --ray-address")
        if "RAY_ADDRESS" in os.environ:
            return _answering(os.environ["RAY_ADDRESS"], "see RAY_ADDRESS in the environment")
        latest = _latest_address(ray)
        return latest if latest is not None and _answers(latest) else None

    def _connect(self, ray: ModuleType, address: str) -> None:
        with _on_loopback(ray) if _is_on_loopback(ray, address) else contextlib.nullcontext():
            context = ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        self.dashboard_url = context.dashboard_url or ""

    def _start(self, ray: ModuleType) -> None:
        """A cluster of this machine alone, in a directory of its own: no other program takes it for theirs."""
        _remove_abandoned_directories()
        self._directory = tempfile.mkdtemp(prefix=f"{_DIRECTORY}{os.getpid()}-")
        os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: ranks would give way to any other program
        with _group_apart(), _on_loopback(ray):
            context = ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=self._dashboard,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=self._directory,
            )
        self.dashboard_url = (context.dashboard_url or "") if self._dashboard else ""


def _is_on_loopback(ray: ModuleType, address: str) -> bool:
    """Whether the Ray there listens on loopback only. Ray itself would look for it at the machine's address."""
    host, _, port = address.rpartition(":")
    is_loopback = host == "localhost" or host.startswith("127.")
    return is_loopback and not _answers(f"{ray.util.get_node_ip_address()}:{port}")


@contextlib.contextmanager
def _on_loopback(ray: ModuleType) -> Iterator[None]:
    """What is started inside listens on loopback only, and what connects inside looks there: Ray's name for that is a
    machine that cannot be of a cluster."""
    name, constants = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", ray._private.ray_constants
    before, found = os.environ.get(name), constants.ENABLE_RAY_CLUSTER
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = found
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _group_apart() -> Iterator[None]:
    """Processes started inside get a group of their own.

    A signal to our whole group (Ctrl-C, `timeout`) then reaches us alone, and Ray is there for as long as we drain.
    A session's leader cannot change its group: its Ray hears such signals too.
    """
    ours = os.getpgrp()
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpgid(0, ours)


def _remove_abandoned_directories() -> None:
    """What runs that were killed could not remove."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY}*-*"):
        owner = directory.name.removeprefix(_DIRECTORY).partition("-")[0]
        if owner.isdecimal() and not _is_alive(int(owner)):
            shutil.rmtree(directory, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise OutriderError("this command needs Ray, which is not installed: pip install 'ray[default]'") from error
    module: ModuleType = ray
    return module


def _silence(ray: ModuleType) -> None:
    """Keeps Ray from printing to our stdout that an actor died: the controller says so, with the reason."""
    with contextlib.suppress(AttributeError):
        ray._private.ray_logging.stdout_deduplicator.skip_re = re.compile("")


def _answering(address: str, hint: str) -> str:
    if not _answers(address):
        raise OutriderError(f"no Ray cluster answers at {address}: {hint}")
    return address


def _answers(address: str) -> bool:
    """Whether anything listens at HOST:PORT: Ray itself would try for half a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return False
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _latest_address(ray: ModuleType) -> str | None:
    """What `ray start` on this machine last wrote down."""
    address: str | None = ray._private.utils.read_ray_address()
    return address


def explain(error: Exception) -> str:
    """One line for what Ray says in many."""
    text = " ".join(str(error).split())
    versions = re.findall(r"Ray: (\S+)", text)
    pythons = re.findall(r"Python: (\S+)", text)
    if "ersion mismatch" in text and len(versions) == 2:
        there, here = (f"Ray {ray} on Python {python}" for ray, python in zip(versions, pythons, strict=False))
        return f"the Ray cluster runs {there}, and this is {here}: install its version, or use --ray-address local"
    return f"cannot use Ray: {text}"
