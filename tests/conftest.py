"""What every test of one process shares."""

import asyncio
import ctypes
import logging
import os
import signal
from collections.abc import Iterator

import grpc
import pytest
from browser import CHROMIUM, Browser
from hypothesis import settings

from outrider.workers.types import logs

os.environ.setdefault("TRITON_INTERPRET", "1")  # before kernels of kernels/gpu are defined: tests run them on the CPU
settings.register_profile("outrider", deadline=None)  # a busy machine is no failure: time is the benchmarks' business
settings.register_profile("repeatable", settings.get_profile("outrider"), derandomize=True)  # of `make test`
settings.load_profile("outrider")


@pytest.fixture(scope="session", autouse=True)
def _grpc_keeps_its_poller() -> None:
    """One object of grpc's asyncio side that nobody ever collects.

    With the last of them grpc ends its poller and joins it, in whatever test the collector runs just then;
    and for ever, if a call of an earlier loop never came to its end.
    """

    async def lasting_channel() -> grpc.aio.Channel:
        return grpc.aio.insecure_channel("127.0.0.1:1")

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(asyncio.run(lasting_channel())))


@pytest.fixture(autouse=True)
def _untouched_logging() -> Iterator[None]:
    """A command sets up logging for its process, to a stderr that is this test's alone."""
    loggers = [logging.getLogger(name) for name in logs.NAMES]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    yield
    for logger, state in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level, logger.propagate = state


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests run in a shell's background, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
