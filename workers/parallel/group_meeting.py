"""Makes a replica's groups: process groups, and where all of a group's ranks share a machine, memory of their own.

As with links, whether they share it is tried, not guessed: the first rank of a group hands its memory over a socket.
Then both are timed, and the faster one carries what the group exchanges.
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
from outrider.workers.parallel.collectives import Collectives
from outrider.workers.parallel.group_collectives import GroupCollectives, new_group
from outrider.workers.parallel.mesh import Mesh, group_name
from outrider.workers.parallel.shared_collectives import SharedCollectives
from outrider.workers.parallel.trial import trial_seconds
from outrider.workers.parallel.watchdog import Watchdog

log = logging.getLogger("outrider.links")
_TIMEOUT_S = 10.0  # for what a peer of this machine has already done when it is waited for

Members = tuple[int, ...]  # ranks of a group


@dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    """What a rank says of itself: its machine, the cores it may use, and where it hands its groups' memory over."""

    machine: str
    cores: int
    addresses: dict[Members, str]


def meet_groups(
    rank: int,
    mesh: Mesh,
    device: torch.device,
    machine: str,
    timeout_s: float,
    describe: Callable[[int], str],
    watchdog: Watchdog | None = None,
) -> dict[Members, Collectives]:
    """Every group of two or more that this rank is in. Every rank of the replica must call it, at the same place.

    They end when the rank leaves. `describe` names a rank in errors. `watchdog`: on GPUs.
    """
    everybody = list(mesh.groups().values())
    process_groups = {members: new_group(members) for members in everybody}  # each made by all ranks, in order
    own = [members for members in everybody if rank in members]
    memory = _meet_in_memory(rank, own, machine, timeout_s) if device.type == "cpu" else {}
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
    """The one of `candidates` that goes on; the others are closed. The same on every rank of the group, `where`."""
    if len(candidates) == 1:
        log.info("%s exchange over %s", where, candidates[0].name)
        return candidates[0]
    seconds = trial_seconds(candidates)
    best = seconds.index(min(seconds))
    tried = [f"{each.name} {1e6 * took:.0f} us" for each, took in zip(candidates, seconds, strict=True)]
    log.info("%s exchange over %s (tried: %s)", where, candidates[best].name, ", ".join(tried))
    for other in (*candidates[:best], *candidates[best + 1 :]):
        other.close()
    return candidates[best]


def _meet_in_memory(rank: int, own: Sequence[Members], machine: str, timeout_s: float) -> dict[Members, SharedGroup]:
    """The groups whose ranks can all share memory. Twice all ranks wait for one another."""
    with ExitStack() as stack:
        doors = {members: stack.enter_context(closing(_door())) for members in own if members[0] == rank}
        addresses = {members: door.getsockname().decode() for members, door in doors.items()}
        cores = len(os.sched_getaffinity(0))
        answers = groups.ask_all(_Here(machine=machine, cores=cores, addresses=addresses))
        local = [members for members in own if all(answers[member].machine == machine for member in members)]
        crowd = sum(answer.machine == machine for answer in answers)
        ends = [(members, _knock(answers[members[0]].addresses[members])) for members in local if members[0] != rank]
        given = {members: _hand_over(doors[members], len(members)) for members in local if members[0] == rank}
        taken = {members: _take(connection) for members, connection in ends}
    opened = {
        members: _open(descriptor, members.index(rank), len(members), timeout_s, shared_cores=crowd > cores)
        for members, descriptor in {**given, **taken}.items()
    }
    failed = {members for answer in groups.ask_all([m for m in own if opened.get(m) is None]) for members in answer}
    return {members: group for members, group in opened.items() if group is not None and members not in failed}


def _door() -> socket.socket:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(f"\0outrider-group-{secrets.token_hex(16)}")
    door.listen()
    door.settimeout(_TIMEOUT_S)
    return door


def _knock(address: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(_TIMEOUT_S)
    try:
        connection.connect(address)
    except OSError as error:
        log.debug("no memory to share: %s", error)
        connection.close()
        return None
    return connection


def _hand_over(door: socket.socket, size: int) -> int | None:
    """Makes a group's memory, and gives it to all others; its descriptor."""
    try:
        descriptor = make_memory(size)
    except (OSError, BuildError) as error:
        log.debug("no memory to share: %s", error)
        return None
    try:
        for _ in range(size - 1):
            with closing(door.accept()[0]) as connection:
                socket.send_fds(connection, [b"group"], [descriptor])
    except OSError as error:
        log.debug("a rank of this machine did not come for its memory: %s", error)
    return descriptor


def _take(connection: socket.socket | None) -> int | None:
    if connection is None:
        return None
    with closing(connection):
        try:
            descriptors = socket.recv_fds(connection, 16, 1)[1]
        except OSError as error:
            log.debug("no memory to share: %s", error)
            return None
    return descriptors[0] if descriptors else None


def _open(descriptor: int | None, rank: int, size: int, timeout_s: float, *, shared_cores: bool) -> SharedGroup | None:
    if descriptor is None:
        return None
    try:
        return SharedGroup(descriptor, rank, size, timeout_s, shared_cores=shared_cores)
    except (OSError, ValueError, BuildError) as error:
        log.debug("no memory to share: %s", error)
        return None
    finally:
        os.close(descriptor)
