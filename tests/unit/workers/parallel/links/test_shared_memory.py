"""A link in shared memory: what arrives, when it waits, and what it says of a peer that is gone or late."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from patience import AT_ONCE_S
from torch import Tensor

from outrider.workers.parallel.links.ring import LEAST_CAPACITY
from outrider.workers.parallel.links.shared_memory import SharedMemory
from outrider.workers.parallel.links.transport import LinkBrokenError

SHORT_S, LONG_S = 0.05, 20.0
NOTHING = torch.empty(0, 0)


@dataclass
class Ends:
    sender: SharedMemory
    receiver: SharedMemory


def _join(dtype: torch.dtype = torch.float32) -> Ends:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Ends(SharedMemory(one, dtype), SharedMemory(other, dtype))


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = _join()
    yield ends
    ends.sender.close()
    ends.receiver.close()


def _send_repeatedly(sender: SharedMemory, hidden: Tensor, times: int) -> None:
    for _ in range(times):
        sender.send(b"", hidden, SHORT_S)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 256), (3, 7), (0, 256), (0, 0), (2048, 129)])
def test_a_message_arrives_whatever_its_size(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    ends = _join(dtype)
    for packed in (b"x", b"", bytes(range(256)) * 40):
        hidden = torch.randn(shape).to(dtype)
        ends.sender.send(packed, hidden, LONG_S)
        got, states = ends.receiver.receive(LONG_S)

        assert got[: len(packed)] == packed
        assert states.dtype == dtype
        assert torch.equal(states, hidden)


def test_sending_does_not_wait_for_a_receiver_that_is_busy(ends: Ends) -> None:
    """Lanes are in flight: small rounds, and a prefill larger than the ring so far among them."""
    sent = [torch.full((rows, 256), float(rows)) for rows in (1, 5, 1, 2048, 1, 1500, 1)]
    for number, hidden in enumerate(sent):
        ends.sender.send(bytes([number]), hidden, LONG_S)

    for number, hidden in enumerate(sent):
        packed, states = ends.receiver.receive(LONG_S)
        assert (packed[0], states.tolist()) == (number, hidden.tolist())


def test_what_was_sent_does_not_change_when_its_memory_is_used_again(ends: Ends) -> None:
    hidden = torch.ones(2, 8)
    ends.sender.send(b"", hidden, LONG_S)
    hidden.zero_()
    _, first = ends.receiver.receive(LONG_S)
    ends.sender.send(b"", hidden, LONG_S)
    _, second = ends.receiver.receive(LONG_S)

    assert (first.unique().tolist(), second.unique().tolist()) == ([1.0], [0.0])


def test_a_transposed_tensor_and_columns_of_a_wider_one_can_be_sent(ends: Ends) -> None:
    wide = torch.randn(3, 8)
    for hidden in (wide.T, wide[:, 2:5]):
        ends.sender.send(b"", hidden, LONG_S)
        assert torch.equal(ends.receiver.receive(LONG_S)[1], hidden)


def test_thousands_of_messages_pass_through_a_ring_of_a_few(ends: Ends) -> None:
    hidden = torch.arange(128 * 256, dtype=torch.float32).reshape(128, 256)  # half a ring
    assert 2 * hidden.nbytes == LEAST_CAPACITY
    count = 2000

    def send() -> None:
        for number in range(count):
            ends.sender.send(number.to_bytes(4, "little"), hidden[: number % 100], LONG_S)

    thread = threading.Thread(target=send)
    thread.start()
    for number in range(count):
        packed, states = ends.receiver.receive(LONG_S)
        assert int.from_bytes(packed[:4], "little") == number
        assert torch.equal(states, hidden[: number % 100])
    thread.join()


def test_a_message_that_does_not_come_is_an_error_at_the_deadline(ends: Ends) -> None:
    began = time.monotonic()
    with pytest.raises(LinkBrokenError, match=r"nothing came within 0\.05 s"):
        ends.receiver.receive(SHORT_S)

    assert SHORT_S * 0.9 <= time.monotonic() - began < AT_ONCE_S


def test_each_wait_has_its_own_deadline(ends: Ends) -> None:
    with pytest.raises(LinkBrokenError, match=r"nothing came within 0\.05 s"):
        ends.receiver.receive(SHORT_S)
    threading.Timer(0.3, ends.sender.send, (b"late", NOTHING, LONG_S)).start()

    assert ends.receiver.receive(None)[0][:4] == b"late"


@pytest.mark.parametrize("rows", [0, 2048])
def test_a_message_that_was_announced_is_awaited_however_long_it_takes(ends: Ends, rows: int) -> None:
    ends.sender.announce(LONG_S)
    threading.Timer(0.3, ends.sender.send, (b"here", torch.ones(rows, 256), LONG_S)).start()

    packed, hidden = ends.receiver.receive(None)
    assert (packed[:4], hidden.shape) == (b"here", (rows, 256))


def test_a_message_that_was_announced_and_does_not_come_is_an_error_at_the_deadline(ends: Ends) -> None:
    ends.sender.announce(LONG_S)
    with pytest.raises(LinkBrokenError, match=r"nothing came within 0\.05 s"):
        ends.receiver.receive(SHORT_S)


def test_who_announces_and_closes_is_gone_at_once(ends: Ends) -> None:
    ends.sender.announce(LONG_S)
    ends.sender.close()
    with pytest.raises(LinkBrokenError, match="it closed the connection"):
        ends.receiver.receive(None)


def test_a_receiver_that_takes_nothing_is_an_error_at_the_deadline(ends: Ends) -> None:
    half_a_ring = torch.zeros(128, 256)
    with pytest.raises(LinkBrokenError, match=r"it took nothing within 0\.05 s"):
        _send_repeatedly(ends.sender, half_a_ring, times=3)


def test_a_receiver_that_reads_no_packet_is_an_error_at_the_deadline(ends: Ends) -> None:
    """Long before the ring is full of empty messages, the socket is."""
    with pytest.raises(LinkBrokenError, match=r"it took nothing within 0\.05 s"):
        _send_repeatedly(ends.sender, NOTHING, times=100_000)


def test_who_waits_for_a_peer_that_closes_hears_of_it_at_once(ends: Ends) -> None:
    threading.Timer(0.1, ends.sender.close).start()
    with pytest.raises(LinkBrokenError, match="it closed the connection"):
        ends.receiver.receive(None)


def test_sending_to_a_peer_that_closed_is_an_error(ends: Ends) -> None:
    ends.receiver.close()
    with pytest.raises(LinkBrokenError, match="it closed the connection"):
        ends.sender.send(b"", NOTHING, LONG_S)


def test_the_last_words_of_a_peer_that_closed_are_still_heard(ends: Ends) -> None:
    """Also when it left acknowledgements unread, upon which the kernel reports a reset first."""
    half_a_ring = torch.ones(128, 256)
    for _ in range(4):
        ends.sender.send(b"", half_a_ring[:100], LONG_S)
        ends.receiver.receive(LONG_S)
    ends.sender.send(b"a ring of its own", torch.ones(4096, 256), LONG_S)
    ends.sender.send(b"stop", NOTHING, LONG_S)
    ends.sender.close()

    assert ends.receiver.receive(None)[0].startswith(b"a ring of its own")
    assert ends.receiver.receive(None)[0].startswith(b"stop")
    with pytest.raises(LinkBrokenError, match="it closed the connection"):
        ends.receiver.receive(None)


def test_states_of_another_type_than_the_links_are_refused(ends: Ends) -> None:
    with pytest.raises(TypeError, match=r"this link carries torch\.float32, got hidden states in torch\.bfloat16"):
        ends.sender.send(b"", torch.zeros(1, 8, dtype=torch.bfloat16), LONG_S)


def test_a_closed_link_leaves_no_memory_and_no_descriptor() -> None:
    def memory() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:outrider")

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    assert memory() == 0
    before = descriptors()
    ends = _join()
    for rows in (1, 2048, 1):
        ends.sender.send(b"", torch.ones(rows, 256), LONG_S)
        ends.receiver.receive(LONG_S)
    assert memory() == 2  # one for each end; outgrown ones are gone

    ends.sender.close()
    ends.receiver.close()
    assert (memory(), descriptors()) == (0, before)
