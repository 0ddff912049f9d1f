"""A gateway that ends is started again, whatever it ended of: the replicas behind it serve on."""

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from gateway.harness import KEY, own_port, running
from patience import AT_ONCE_S

from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway_process import LAST_PAUSE_S, GatewayProcess, pause_before_start_s
from outrider.workers.types.errors import OutriderError


def start(controller: str, port: int | None = None) -> GatewayProcess:
    return GatewayProcess(
        controller=controller,
        host="127.0.0.1",
        port=port or own_port(),
        metrics_port=None,
        access=AccessSettings(),
        cluster_key=KEY,
        log_level="error",
    )


def child() -> psutil.Process | None:
    for one in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if one.status() != psutil.STATUS_ZOMBIE and "gateway" in one.cmdline():
                return one
    return None


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + AT_ONCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def is_started_again(gateway: GatewayProcess, ended: psutil.Process) -> bool:
    gateway.check()
    now = child()
    return now is not None and now.pid != ended.pid


def test_one_that_is_killed_as_soon_as_it_starts_is_started_again() -> None:
    gateway = start("127.0.0.1:1")
    for _ in range(2):
        wait_for(lambda: child() is not None)
        killed = child()
        assert killed is not None
        killed.send_signal(signal.SIGSEGV)
        wait_for(lambda ended=killed: is_started_again(gateway, ended))
    gateway.close(threading.Event())

    assert child() is None


def test_one_that_ends_by_itself_after_it_was_ready_is_started_again(model: Path) -> None:
    def ended_and_started(controller: str) -> None:
        gateway = start(controller)
        gateway.wait_until_ready(threading.Event())
        ended = child()
        assert ended is not None
        ended.terminate()
        wait_for(lambda: is_started_again(gateway, ended))
        gateway.wait_until_ready(threading.Event())
        gateway.close(threading.Event())

    async def scenario() -> None:
        async with running(model) as cluster:
            await asyncio.to_thread(ended_and_started, cluster.controller.address)

    asyncio.run(scenario())


def test_one_that_cannot_start_with_what_it_was_told_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gateway = start("127.0.0.1:1", port=taken.getsockname()[1])
        try:
            with pytest.raises(OutriderError, match="ended with status 1"):
                gateway.wait_until_ready(threading.Event())
        finally:
            gateway.close(threading.Event())


def test_pauses_grow_up_to_a_most() -> None:
    pauses = [pause_before_start_s(short_lives) for short_lives in range(40)]

    assert pauses[:5] == [0.0, 0.0, 1.0, 2.0, 4.0]
    assert pauses[-1] == LAST_PAUSE_S
