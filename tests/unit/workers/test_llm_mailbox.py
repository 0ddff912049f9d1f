"""What waits for an engine in the caller's thread."""

import _thread
import threading

import pytest

from outrider.workers.llm import _Mailbox
from outrider.workers.types.requests.request import SequenceChunk


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_is_heard_though_it_came_just_before_a_wait() -> None:
    mailbox = _Mailbox(at_once=[])
    release = threading.Timer(10.0, mailbox.put, [[SequenceChunk(request_id="late", error="never heard")]])
    release.start()
    threading.Timer(0.1, _thread.interrupt_main).start()  # breaks off no wait, as a signal does that comes before it

    with pytest.raises(KeyboardInterrupt):
        mailbox.take()
    release.cancel()
