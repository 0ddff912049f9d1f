"""SilenceWatch cancels a call after SILENCE_S without a message, but not while the caller handles an event."""

import threading
import time

import pytest

from outrider.cluster.client import silence
from outrider.cluster.client.silence import SilenceWatch


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[SilenceWatch, threading.Event]:
    monkeypatch.setattr(silence, "SILENCE_S", 0.1)
    cancelled = threading.Event()
    watch = SilenceWatch(cancelled.set)
    watch.received(heartbeat=True)
    return watch, cancelled


def test_a_call_without_messages_is_cancelled(watched: tuple[SilenceWatch, threading.Event]) -> None:
    watch, cancelled = watched

    assert cancelled.wait(10)
    assert watch.silent


def test_a_slow_caller_does_not_count_as_silence(watched: tuple[SilenceWatch, threading.Event]) -> None:
    watch, cancelled = watched

    watch.pause()
    time.sleep(0.5)
    assert not cancelled.is_set()

    watch.resume()
    assert cancelled.wait(10), "the watch goes on after resume"
