"""Another rank of a small pipeline, in a process of its own: it meets the others, and then does as it is told.

python link_partner.py RANK RANKS PORT MACHINE TASK
"""

import os
import resource
import sys
import time
from collections.abc import Callable

import torch

from outrider.workers.parallel import groups
from outrider.workers.parallel.links.rendezvous import connect_links
from outrider.workers.parallel.links.stage_link import StageLink
from outrider.workers.parallel.links.transport import Transport
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.types.rounds.round import Round

TIMEOUT_S = 60.0
CPU = torch.device("cpu")


def pass_on(incoming: StageLink, onward: StageLink) -> None:
    """Until told to stop, and then that too."""
    content: object = ()
    while content is not None:
        message = incoming.receive(deadline=False, waiting_for="a message")
        content = message.content
        onward.send(message.content, message.hidden)
    onward.flush()


def leave(incoming: StageLink, onward: StageLink) -> None:
    """Is told to, and leaves the group; its process stays."""
    incoming.receive(deadline=True, waiting_for="a message")
    groups.leave()
    time.sleep(TIMEOUT_S)


def sleep(incoming: StageLink, onward: StageLink) -> None:
    """Receives nothing and sends nothing."""
    time.sleep(TIMEOUT_S)


def circulate(incoming: StageLink, onward: StageLink) -> None:
    """Keeps a large and a small message going round; says so."""
    for rows in (4096, 1):
        onward.send(Round(), torch.ones(rows, 256))
    sys.stdout.write("circulating\n")
    sys.stdout.flush()
    while True:
        message = incoming.receive(deadline=True, waiting_for="a message")
        onward.send(message.content, message.hidden)


TASKS: dict[str, Callable[[StageLink, StageLink], None]] = {
    "pass on": pass_on,
    "pass on, with no descriptor to spare": pass_on,
    "leave": leave,
    "sleep": sleep,
    "circulate": circulate,
}


def ring(rank: int, ranks: int, machine: str) -> tuple[Transport, Transport]:
    """This rank's ends of the links from the rank before and to the rank after."""
    ends = connect_links(rank, Mesh(pipeline=ranks).routes(), torch.float32, CPU, machine)
    return ends[(rank - 1) % ranks, rank], ends[rank, (rank + 1) % ranks]


def spare_descriptors(count: int) -> None:
    """From now on this process can open so many."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def main() -> None:
    rank, ranks, port = map(int, sys.argv[1:4])
    machine, task = sys.argv[4:]
    groups.join(rank, ranks, "127.0.0.1", port, CPU)
    if task == "pass on, with no descriptor to spare":
        spare_descriptors(4)  # its door, its own sending end with a ring, and who knocks: not the knocker's ring
    incoming, onward = ring(rank, ranks, machine)
    TASKS[task](StageLink(incoming, "before", TIMEOUT_S), StageLink(onward, "after", TIMEOUT_S))
    groups.leave()


if __name__ == "__main__":
    main()
