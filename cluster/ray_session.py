"""Connects this process to a running Ray cluster, or starts a local one that ends with this process.

Converts Ray's errors (not installed, not reachable, other version) to one-line messages.
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
OBJECT_STORE_BYTES = 100 * 2**20  # small, since no large objects are sent through Ray
_DIRECTORY = "outrider-ray-"  # followed by the pid of the owner


class RaySession:
    """A connection from `open` to `close`. `dashboard` and `keep_logs` are used only if Ray is started here."""

    def __init__(self, address: str, *, dashboard: bool, keep_logs: bool = False) -> None:
        self._address, self._dashboard, self._keep_logs = address, dashboard, keep_logs
        self._directory: str | None = None
        self.dashboard_url = ""

    def open(self) -> None:
        """Raises OutriderError if it fails; nothing keeps running then."""
        ray = import_ray()
        found = self._find(ray)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            if found is None:
                self._start(ray)
            else:
                self._connect(ray, found)
            signal.signal(signal.SIGTERM, handler)  # Ray has replaced it
            _silence(ray)
        except (RuntimeError, ConnectionError, ValueError, OSError) as error:
            self.close()
            raise OutriderError(explain(error)) from error

    @property
    def is_own(self) -> bool:
        """Whether Ray was started here; then `close` stops it with everything that runs on it."""
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
        """The address to connect to; None: start a cluster. Raises OutriderError if a given cluster is not running."""
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
        """Starts a local cluster in its own directory, so that no other program connects to it by accident."""
        _remove_abandoned_directories()
        self._directory = tempfile.mkdtemp(prefix=f"{_DIRECTORY}{os.getpid()}-")
        os.environ.setdefault(
            "RAY_worker_niceness", "0"
        )  # the default 15 would give every other program priority over ranks
        with _own_process_group(), _on_loopback(ray):
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
    """Whether the Ray cluster at this address listens on loopback only."""
    host, _, port = address.rpartition(":")
    is_loopback = host == "localhost" or host.startswith("127.")
    return is_loopback and not _answers(f"{ray.util.get_node_ip_address()}:{port}")


@contextlib.contextmanager
def _on_loopback(ray: ModuleType) -> Iterator[None]:
    """Makes Ray start, and connect, on loopback only. Ray does that on systems without cluster support."""
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
def _own_process_group() -> Iterator[None]:
    """Starts processes in a separate process group.

    A signal to the original group (Ctrl-C, `timeout`) then does not reach Ray, which must run until the drain is done.
    A session leader cannot change its group, so there Ray receives such signals too.
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
    """Removes the directories of killed runs."""
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
        raise OutriderError("this command requires Ray, which is not installed: pip install 'ray[default]'") from error
    module: ModuleType = ray
    return module


def _silence(ray: ModuleType) -> None:
    """Keeps Ray from printing dead actors to stdout: the controller logs them with the reason."""
    with contextlib.suppress(AttributeError):
        ray._private.ray_logging.stdout_deduplicator.skip_re = re.compile("")


def _answering(address: str, hint: str) -> str:
    if not _answers(address):
        raise OutriderError(f"no Ray cluster answers at {address}: {hint}")
    return address


def _answers(address: str) -> bool:
    """Whether anything listens at HOST:PORT. Ray itself would retry for half a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return False
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _latest_address(ray: ModuleType) -> str | None:
    """The address of the last `ray start` on this machine."""
    address: str | None = ray._private.utils.read_ray_address()
    return address


def explain(error: Exception) -> str:
    """A one-line form of Ray's message."""
    text = " ".join(str(error).split())
    versions = re.findall(r"Ray: (\S+)", text)
    pythons = re.findall(r"Python: (\S+)", text)
    if "ersion mismatch" in text and len(versions) == 2:
        there, here = (f"Ray {ray} on Python {python}" for ray, python in zip(versions, pythons, strict=False))
        return f"the Ray cluster runs {there}, this process {here}: install its version, or use --ray-address local"
    return f"cannot use Ray: {text}"
