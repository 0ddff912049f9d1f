"""A rank in a process of its own, over gloo: python collectives_partner.py RANK RANKS PORT. Prints what it found."""

import sys

import torch

from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives import ExchangeBrokenError
from outrider.workers.parallel.group_meeting import meet_groups
from outrider.workers.parallel.mesh import Mesh

CPU = torch.device("cpu")


def main() -> None:
    rank, ranks, port = map(int, sys.argv[1:4])
    groups.join(rank, ranks, "127.0.0.1", port, CPU)
    mesh = Mesh(tensor=ranks)
    met = meet_groups(rank, mesh, CPU, f"machine {rank}", 3.0, lambda other: f"rank {other}")
    group = met[mesh.tensor_group(rank)]
    found = [
        group.gather(torch.full((2, 3), rank, dtype=torch.bfloat16), "heads").float().sum().item(),
        len(group.gather(torch.ones(3), "logits", root=1)),
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
