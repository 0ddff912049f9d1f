"""Two ends meet in shared memory only if the one that knocks is the one that was invited, on the same machine."""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from outrider.workers.parallel.meeting import RankOffer, knock, this_machine
from outrider.workers.parallel.transport import LinkBrokenError

TYPE = torch.bfloat16


@pytest.fixture
def door() -> Iterator[RankOffer]:
    with closing(RankOffer("here")) as door:
        yield door


def test_who_was_invited_is_let_in(door: RankOffer) -> None:
    sender = knock(door.offer, "here", TYPE)
    receiver = door.admit(TYPE)
    sender.send(b"hello", torch.ones(2, 3, dtype=TYPE), 5)

    packed, hidden = receiver.receive(5)
    assert (packed[:5], hidden.tolist()) == (b"hello", [[1.0] * 3] * 2)
    sender.close()
    receiver.close()


def test_who_does_not_know_the_secret_is_sent_away(door: RankOffer) -> None:
    stranger = knock(replace(door.offer, secret=bytes(16)), "here", TYPE)
    with pytest.raises(LinkBrokenError, match="its memory does not show what it was sent"):
        door.admit(TYPE)
    with pytest.raises(LinkBrokenError, match="it closed the connection"):
        stranger.receive(5)


def test_who_knocks_and_leaves_is_not_waited_for(door: RankOffer) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(door.offer.address)
    with pytest.raises(LinkBrokenError, match="it closed the connection"):
        door.admit(TYPE)


def test_nobody_knocks_at_another_machines_door(door: RankOffer) -> None:
    with pytest.raises(LinkBrokenError, match="it is on another machine"):
        knock(door.offer, "elsewhere", TYPE)


def test_a_door_that_cannot_be_seen_from_here_is_an_error_at_once(door: RankOffer) -> None:
    """As from a container with a network of its own, which has the same machine."""
    with pytest.raises(ConnectionRefusedError):
        knock(replace(door.offer, address=door.offer.address + "x"), "here", TYPE)


def test_no_two_doors_have_the_same_address(door: RankOffer) -> None:
    with closing(RankOffer("here")) as other:
        assert other.offer.address != door.offer.address


def test_a_machine_is_the_same_whoever_asks() -> None:
    assert this_machine() == this_machine() != ""
