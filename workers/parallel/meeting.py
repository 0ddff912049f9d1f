"""Settles over what each stage link travels: shared memory where both ends can have it, else the group itself.

Whether they can is tried, not guessed: the sender knocks at a socket of this machine and sends, through the very
memory, a secret that the receiver gave out over the group. Containers that share no memory or no socket fail it.
"""

import logging
import secrets
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from outrider.workers.parallel import groups
from outrider.workers.parallel.group_transport import GroupTransport
from outrider.workers.parallel.shared_memory import SharedMemory
from outrider.workers.parallel.transport import LinkBrokenError, Transport

log = logging.getLogger("outrider.links")
_TIMEOUT_S = 10.0  # for what a peer of this machine has already done when it is waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Where a rank awaits the one before it."""

    machine: str
    address: str  # of a socket in Linux's abstract namespace: no file, and gone with its process
    secret: bytes


class Door:
    """A rank's own offer, and the socket behind it."""

    def __init__(self, machine: str) -> None:
        self.offer = Offer(
            machine=machine, address=f"\0outrider-link-{secrets.token_hex(8)}", secret=secrets.token_bytes(16)
        )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(self.offer.address)
        self._socket.listen(1)
        self._socket.settimeout(_TIMEOUT_S)

    def admit(self, dtype: torch.dtype) -> SharedMemory:
        """The receiving end of whoever knocked. LinkBrokenError or OSError if it is not who was invited."""
        link = SharedMemory(self._socket.accept()[0], dtype)
        try:
            secret, _ = link.receive(_TIMEOUT_S)
            if secret[: len(self.offer.secret)] != self.offer.secret:
                raise LinkBrokenError("its memory does not show what it was sent")
        except LinkBrokenError:
            link.close()
            raise
        return link

    def close(self) -> None:
        self._socket.close()


def knock(offer: Offer, machine: str, dtype: torch.dtype) -> SharedMemory:
    """The sending end of a link to whoever made the offer. LinkBrokenError or OSError says why there is none."""
    if offer.machine != machine:
        raise LinkBrokenError("it is on another machine")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(offer.address)
        link = SharedMemory(connection, dtype)
        link.send(offer.secret, torch.empty(0, 0), _TIMEOUT_S)
    except (LinkBrokenError, OSError):
        connection.close()
        raise
    return link


def meet(rank: int, ranks: int, dtype: torch.dtype, device: torch.device, machine: str) -> tuple[Transport, Transport]:
    """This rank's ends of the links from the rank before and to the rank after (the first comes after the last).

    Every rank of the group must call it, at the same place. They end when the group is left.
    """
    before, after = (rank - 1) % ranks, (rank + 1) % ranks
    ends: tuple[SharedMemory | str, SharedMemory | str] = ("it is a GPU", "it is a GPU")
    if device.type == "cpu":
        ends = _meet_in_memory(before, after, dtype, machine)
    incoming, outgoing = (
        end if isinstance(end, SharedMemory) else GroupTransport(peer, dtype, device)
        for end, peer in zip(ends, (before, after), strict=True)
    )
    reason = "" if isinstance(ends[1], SharedMemory) else f" ({ends[1]})"
    log.info("rank %d sends to rank %d over %s%s", rank, after, outgoing.name, reason)
    for transport in (incoming, outgoing):
        groups.on_leave(transport.close)
    return incoming, outgoing


def _meet_in_memory(
    before: int, after: int, dtype: torch.dtype, machine: str
) -> tuple[SharedMemory | str, SharedMemory | str]:
    """The incoming and the outgoing end, or why there is none. Three times all ranks wait for one another."""
    with closing(Door(machine)) as door:
        offers = groups.ask_all(door.offer)
        outgoing = _attempt(lambda: knock(offers[after], machine, dtype))
        refusals = groups.ask_all(_reason(outgoing))
        incoming = _attempt(lambda: door.admit(dtype)) if not refusals[before] else refusals[before]
        refusals = groups.ask_all(_reason(incoming))
    if isinstance(outgoing, SharedMemory) and refusals[after]:
        outgoing.close()
        outgoing = refusals[after]
    return incoming, outgoing


def _attempt(open_end: Callable[[], SharedMemory]) -> SharedMemory | str:
    try:
        return open_end()
    except (LinkBrokenError, OSError) as error:
        return str(error)


def _reason(end: SharedMemory | str) -> str:
    return end if isinstance(end, str) else ""


def this_machine() -> str:
    """The same for every process under one running kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
