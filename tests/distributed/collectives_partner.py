"""A rank in a process of its own: python collectives_partner.py RANK RANKS PORT [MACHINE]. Prints what it found.

With a machine that all name alike, ranks try whether they share memory; without, each is on one of its own.
"""

import sys

import torch

from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.collectives import ExchangeBrokenError
from outrider.workers.parallel.collectives.group_rendezvous import connect_groups
from outrider.workers.parallel.mesh import Mesh

CPU = torch.device("cpu")


def main() -> None:
    rank, ranks, port = map(int, sys.argv[1:4])
    groups.join(rank, ranks, "127.0.0.1", port, CPU)
    mesh = Mesh(tensor=ranks)
    machine = sys.argv[4] if len(sys.argv) > 4 else f"machine {rank}"
    met = connect_groups(rank, mesh, CPU, machine, 3.0, lambda other: f"rank {other}")
    group = met[mesh.tensor_group(rank)]
    found = [
        group.gather(torch.full((2, 3), rank, dtype=torch.bfloat16), "heads").float().sum().item(),
        len(group.gather(torch.ones(3), "logits", root=1)),
        group.gather(torch.tensor([[1.5, rank]]).to(torch.float8_e4m3fn), "rows to experts").float().sum().item(),
        group.add(torch.full((2, 2), rank + 0.5, dtype=torch.bfloat16), "layer outputs").sum().item(),
        group.exchange(
            torch.full((rank + 1, 2), float(rank)), [rank + 1, 0], [1, 2] if rank == 0 else [0, 0], "rows to experts"
        )
        .sum()
        .item(),
    ]
    if rank == 0:
        try:
            group.gather(torch.ones(1), "latents")  # which the other does not join
        except ExchangeBrokenError as error:
            found.append(str(error))
    sys.stdout.write(f"{group.name} {found}\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    main()
