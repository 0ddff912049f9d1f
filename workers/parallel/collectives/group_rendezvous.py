"""Creates a replica's groups: process groups and, where a group's ranks share a machine, shared memory groups.

Whether ranks can share memory is tested, not assumed: a group's first rank sends the memory's descriptor over a Unix
socket. Then both transports are timed, and the faster one is used for the group's collectives.
"""

import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch

from outrider.kernels.cpu.compiler import BuildError
from outrider.kernels.cpu.shared_group import SharedGroup, make_memory
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.collectives import Collectives
from outrider.workers.parallel.collectives.group_collectives import GroupCollectives, new_group
from outrider.workers.parallel.collectives.shared_collectives import SharedCollectives
from outrider.workers.parallel.collectives.trial import trial_seconds
from outrider.workers.parallel.mesh import Mesh, group_name
from outrider.workers.parallel.watchdog import Watchdog

log = logging.getLogger("outrider.links")
_TIMEOUT_S = 10.0  # for a peer on this machine; it has normally acted before this rank waits

Members = tuple[int, ...]  # the ranks of a group


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupOffer:
    """A rank's machine, the cores that it may use, and the socket addresses where it sends its groups' memory."""

    machine: str
    cores: int
    addresses: dict[Members, str]


def connect_groups(
    rank: int,
    mesh: Mesh,
    device: torch.device,
    machine: str,
    timeout_s: float,
    describe: Callable[[int], str],
    watchdog: Watchdog | None = None,
) -> dict[Members, Collectives]:
    """Every group of two or more ranks that this rank is in, by its ranks. Collective over the replica.

    Groups are closed when the rank leaves (`groups.leave`). `describe` names a rank in errors. `watchdog`: on GPUs.
    """
    all_groups = list(mesh.groups().values())
    process_groups = {
        members: new_group(members) for members in all_groups
    }  # every rank creates all of them, in this order
    own = [members for members in all_groups if rank in members]
    memory = _connect_in_memory(rank, own, machine, timeout_s) if device.type == "cpu" else {}
    found: dict[Members, Collectives] = {}
    for members in own:
        candidates: list[Collectives] = [
            GroupCollectives(process_groups[members], group_name(members), timeout_s, watchdog)
        ]
        if members in memory:
            names = [describe(member) for member in members]
            candidates.insert(0, SharedCollectives(memory[members], names, timeout_s))
        found[members] = fastest(candidates, group_name(members))
        groups.on_leave(found[members].close)
    return found


def fastest(candidates: Sequence[Collectives], where: str) -> Collectives:
    """The fastest of `candidates` for the group `where`, the same on every rank of it. The others are closed."""
    if len(candidates) == 1:
        log.info("%s exchange over %s", where, candidates[0].name)
        return candidates[0]
    seconds = trial_seconds(candidates)
    best = seconds.index(min(seconds))
    timed = [f"{each.name} {1e6 * took:.0f} us" for each, took in zip(candidates, seconds, strict=True)]
    log.info("%s exchange over %s (tried: %s)", where, candidates[best].name, ", ".join(timed))
    for other in (*candidates[:best], *candidates[best + 1 :]):
        other.close()
    return candidates[best]


def _connect_in_memory(rank: int, own: Sequence[Members], machine: str, timeout_s: float) -> dict[Members, SharedGroup]:
    """The groups whose ranks can all share memory. Contains two collectives over the replica."""
    with ExitStack() as stack:
        listeners = {members: stack.enter_context(closing(_listen())) for members in own if members[0] == rank}
        addresses = {members: listener.getsockname().decode() for members, listener in listeners.items()}
        cores = len(os.sched_getaffinity(0))
        answers = groups.all_gather(_GroupOffer(machine=machine, cores=cores, addresses=addresses))
        local = [members for members in own if all(answers[member].machine == machine for member in members)]
        crowd = sum(answer.machine == machine for answer in answers)
        ends = [(members, _connect(answers[members[0]].addresses[members])) for members in local if members[0] != rank]
        given = {members: _send_memory(listeners[members], len(members)) for members in local if members[0] == rank}
        taken = {members: _receive_memory(connection) for members, connection in ends}
    opened = {
        members: _open(descriptor, members.index(rank), len(members), timeout_s, shared_cores=crowd > cores)
        for members, descriptor in {**given, **taken}.items()
    }
    failed = {members for answer in groups.all_gather([m for m in own if opened.get(m) is None]) for members in answer}
    return {members: group for members, group in opened.items() if group is not None and members not in failed}


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0outrider-group-{secrets.token_hex(16)}")
    listener.listen()
    listener.settimeout(_TIMEOUT_S)
    return listener


def _connect(address: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(_TIMEOUT_S)
    try:
        connection.connect(address)
    except OSError as error:
        log.debug("no shared memory: %s", error)
        connection.close()
        return None
    return connection


def _send_memory(listener: socket.socket, size: int) -> int | None:
    """Creates a group's memory, sends its descriptor to the other ranks, and returns it."""
    try:
        descriptor = make_memory(size)
    except (OSError, BuildError) as error:
        log.debug("no shared memory: %s", error)
        return None
    try:
        for _ in range(size - 1):
            with closing(listener.accept()[0]) as connection:
                socket.send_fds(connection, [b"group"], [descriptor])
    except OSError as error:
        log.debug("a rank of this machine did not connect for the shared memory: %s", error)
    return descriptor


def _receive_memory(connection: socket.socket | None) -> int | None:
    if connection is None:
        return None
    with closing(connection):
        try:
            descriptors = socket.recv_fds(connection, 16, 1)[1]
        except OSError as error:
            log.debug("no shared memory: %s", error)
            return None
    return descriptors[0] if descriptors else None


def _open(descriptor: int | None, rank: int, size: int, timeout_s: float, *, shared_cores: bool) -> SharedGroup | None:
    if descriptor is None:
        return None
    try:
        return SharedGroup(descriptor, rank, size, timeout_s, shared_cores=shared_cores)
    except (OSError, ValueError, BuildError) as error:
        log.debug("no shared memory: %s", error)
        return None
    finally:
        os.close(descriptor)
