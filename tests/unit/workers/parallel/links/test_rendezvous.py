"""A shared memory link needs a peer on the same machine that knows the offer's secret."""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from outrider.workers.parallel.links.rendezvous import OpenOffer, connect_to, this_machine
from outrider.workers.parallel.links.transport import LinkBrokenError

TYPE = torch.bfloat16


@pytest.fixture
def listener() -> Iterator[OpenOffer]:
    with closing(OpenOffer("here")) as listener:
        yield listener


def test_a_peer_with_the_secret_is_connected(listener: OpenOffer) -> None:
    sender = connect_to(listener.offer, "here", TYPE)
    receiver = listener.accept(TYPE)
    sender.send(b"hello", torch.ones(2, 3, dtype=TYPE), 5)

    packed, hidden = receiver.receive(5)
    assert (packed[:5], hidden.tolist()) == (b"hello", [[1.0] * 3] * 2)
    sender.close()
    receiver.close()


def test_a_peer_without_the_secret_is_refused(listener: OpenOffer) -> None:
    stranger = connect_to(replace(listener.offer, secret=bytes(16)), "here", TYPE)
    with pytest.raises(LinkBrokenError, match="its shared memory does not contain the secret"):
        listener.accept(TYPE)
    with pytest.raises(LinkBrokenError, match="it closed the connection"):
        stranger.receive(5)


def test_a_peer_that_disconnects_is_an_error_at_once(listener: OpenOffer) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(listener.offer.address)
    with pytest.raises(LinkBrokenError, match="it closed the connection"):
        listener.accept(TYPE)


def test_an_offer_of_another_machine_is_refused(listener: OpenOffer) -> None:
    with pytest.raises(LinkBrokenError, match="it is on another machine"):
        connect_to(listener.offer, "elsewhere", TYPE)


def test_an_unreachable_address_is_an_error_at_once(listener: OpenOffer) -> None:
    """As from a container with a network of its own, which has the same machine."""
    with pytest.raises(ConnectionRefusedError):
        connect_to(replace(listener.offer, address=listener.offer.address + "x"), "here", TYPE)


def test_no_two_offers_have_the_same_address(listener: OpenOffer) -> None:
    with closing(OpenOffer("here")) as other:
        assert other.offer.address != listener.offer.address


def test_a_machine_has_one_name() -> None:
    assert this_machine() == this_machine() != ""
