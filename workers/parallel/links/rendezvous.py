"""Chooses the transport of each stage link: shared memory if both ends can use it, else the process group.

This is tested, not assumed. The receiver publishes a secret over the process group. The sender connects to a socket on
its own machine and sends the secret back through shared memory. Containers that share no memory or no socket fail this
test.
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
from outrider.workers.parallel.collectives.group_collectives import new_group
from outrider.workers.parallel.links.device_transport import DeviceTransport
from outrider.workers.parallel.links.group_transport import GroupTransport
from outrider.workers.parallel.links.shared_memory import SharedMemory
from outrider.workers.parallel.links.transport import LinkBrokenError, Transport
from outrider.workers.parallel.mesh import Route
from outrider.workers.parallel.watchdog import Watchdog

log = logging.getLogger("outrider.links")
_TIMEOUT_S = 10.0  # for a peer on this machine; it has normally acted before this rank waits
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Where a rank accepts the sender of an incoming link."""

    machine: str
    address: str  # in Linux's abstract namespace: no file, and freed when its process ends
    secret: bytes


class OpenOffer:
    """A rank's own offer, and the socket that listens for it."""

    def __init__(self, machine: str) -> None:
        self.offer = Offer(
            machine=machine, address=f"\0outrider-link-{secrets.token_hex(8)}", secret=secrets.token_bytes(16)
        )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(self.offer.address)
        self._socket.listen(1)
        self._socket.settimeout(_TIMEOUT_S)

    def accept(self, dtype: torch.dtype) -> SharedMemory:
        """The receiving end of the link. LinkBrokenError or OSError if no peer connects with the right secret."""
        link = SharedMemory(self._socket.accept()[0], dtype)
        try:
            secret, _ = link.receive(_TIMEOUT_S)
            if secret[: len(self.offer.secret)] != self.offer.secret:
                raise LinkBrokenError("its shared memory does not contain the secret")
        except LinkBrokenError:
            link.close()
            raise
        return link

    def close(self) -> None:
        self._socket.close()


def connect_to(offer: Offer, machine: str, dtype: torch.dtype) -> SharedMemory:
    """The sending end of a link to the rank that made `offer`. LinkBrokenError or OSError says why it failed."""
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


def connect_links(
    rank: int,
    routes: Sequence[Route],
    dtype: torch.dtype,
    device: torch.device,
    machine: str,
    watchdog: Watchdog | None = None,
) -> dict[Route, Transport]:
    """This rank's ends of its links among all `routes` of the replica. Collective: every rank passes the same routes.

    The links are closed when the rank leaves (`groups.leave`). With a `watchdog` (between GPUs), hidden states go from
    device to device.
    """
    own = [route for route in routes if rank in route]
    ends = _connect_in_memory(rank, own, dtype, machine)
    states = (
        {route: new_group(sorted(route)) for route in routes} if watchdog is not None else {}
    )  # by every rank, in this order
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


def _connect_in_memory(
    rank: int, own: Sequence[Route], dtype: torch.dtype, machine: str
) -> dict[Route, SharedMemory | str]:
    """Each route's end on this rank, or the reason why it has none. Contains three collectives over the replica."""
    outgoing, incoming = ([route for route in own if route[side] == rank] for side in (0, 1))
    with ExitStack() as stack:
        listeners = {route: stack.enter_context(closing(OpenOffer(machine))) for route in incoming}
        offers = _gather_routes({route: listener.offer for route, listener in listeners.items()})
        ends = {route: _attempt(partial(connect_to, offers[route], machine, dtype)) for route in outgoing}
        refusals = _gather_routes({route: _reason(end) for route, end in ends.items()})
        for route, listener in listeners.items():
            ends[route] = refusals[route] or _attempt(partial(listener.accept, dtype))
        refusals = _gather_routes({route: _reason(ends[route]) for route in incoming})
    for route in outgoing:
        end = ends[route]
        if isinstance(end, SharedMemory) and refusals[route]:
            end.close()
            ends[route] = refusals[route]
    return ends


def _gather_routes(own: dict[Route, T]) -> dict[Route, T]:
    """All ranks' values for their own routes, in one dict."""
    return {route: answer for answers in groups.all_gather(own) for route, answer in answers.items()}


def _attempt(open_end: Callable[[], SharedMemory]) -> SharedMemory | str:
    try:
        return open_end()
    except (LinkBrokenError, OSError) as error:
        return str(error)


def _reason(end: SharedMemory | str) -> str:
    return end if isinstance(end, str) else ""


def this_machine() -> str:
    """An id of this machine, equal for all processes that run on the same kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
