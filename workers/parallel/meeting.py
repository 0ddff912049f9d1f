"""Settles over what each stage link travels: shared memory where both ends can have it, else the group itself.

Whether they can is tried, not guessed: the sender knocks at a socket of this machine and sends, through the very
memory, a secret that the receiver gave out over the group. Containers that share no memory or no socket fail it.
"""

import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from outrider.workers.parallel import groups
from outrider.workers.parallel.device_transport import DeviceTransport
from outrider.workers.parallel.group_collectives import new_group
from outrider.workers.parallel.group_transport import GroupTransport
from outrider.workers.parallel.mesh import Route
from outrider.workers.parallel.shared_memory import SharedMemory
from outrider.workers.parallel.transport import LinkBrokenError, Transport
from outrider.workers.parallel.watchdog import Watchdog

log = logging.getLogger("outrider.links")
_TIMEOUT_S = 10.0  # for what a peer of this machine has already done when it is waited for
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Where a rank awaits the one before it."""

    machine: str
    address: str  # of a socket in Linux's abstract namespace: no file, and gone with its process
    secret: bytes


class RankOffer:
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


def meet(
    rank: int,
    routes: Sequence[Route],
    dtype: torch.dtype,
    device: torch.device,
    machine: str,
    watchdog: Watchdog | None = None,
) -> dict[Route, Transport]:
    """This rank's ends of the links that begin or end here, of all `routes` of the replica.

    Every rank of the group must call it, with the same routes, at the same place. They end when the group is left.
    Between GPUs, where there is a `watchdog`, hidden states go from device to device.
    """
    own = [route for route in routes if rank in route]
    ends = _meet_in_memory(rank, own, dtype, machine)
    states = {route: new_group(sorted(route)) for route in routes} if watchdog is not None else {}  # by all, in order
    transports: dict[Route, Transport] = {}
    for (sender, receiver), end in ends.items():
        peer = receiver if sender == rank else sender
        transport: Transport = end if isinstance(end, SharedMemory) else GroupTransport(peer, dtype)
        if watchdog is not None:
            transport = DeviceTransport(transport, states[sender, receiver], peer, dtype, device, watchdog)
        if sender == rank:
            reason = "" if isinstance(end, SharedMemory) else f" ({end})"
            log.info("rank %d sends to rank %d over %s%s", sender, receiver, transport.name, reason)
        groups.on_leave(transport.close)
        transports[sender, receiver] = transport
    return transports


def _meet_in_memory(
    rank: int, own: Sequence[Route], dtype: torch.dtype, machine: str
) -> dict[Route, SharedMemory | str]:
    """Each route's end here, or why there is none. Three times all ranks wait for one another."""
    outgoing, incoming = ([route for route in own if route[side] == rank] for side in (0, 1))
    with ExitStack() as stack:
        doors = {route: stack.enter_context(closing(RankOffer(machine))) for route in incoming}
        offers = _ask_all_of({route: door.offer for route, door in doors.items()})
        ends = {route: _attempt(partial(knock, offers[route], machine, dtype)) for route in outgoing}
        refusals = _ask_all_of({route: _reason(end) for route, end in ends.items()})
        for route, door in doors.items():
            ends[route] = refusals[route] or _attempt(partial(door.admit, dtype))
        refusals = _ask_all_of({route: _reason(ends[route]) for route in incoming})
    for route in outgoing:
        end = ends[route]
        if isinstance(end, SharedMemory) and refusals[route]:
            end.close()
            ends[route] = refusals[route]
    return ends


def _ask_all_of(own: dict[Route, T]) -> dict[Route, T]:
    """What every rank says of its own routes, together."""
    return {route: answer for answers in groups.ask_all(own) for route, answer in answers.items()}


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
