"""A rank that exchanges by a stand-in for DeepEP: python deep_ep_partner.py RANK DATAS TENSORS PORT.

Its folder fake_deep_ep is on the path. Prints whether it, and AllToAll over gloo, bring each row its experts' outputs.
"""

import sys

import torch
from torch import Tensor

from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.group_collectives import GroupCollectives
from outrider.workers.parallel.collectives.group_rendezvous import connect_groups
from outrider.workers.parallel.deep_ep import DeepEp, find_deep_ep, open_buffer
from outrider.workers.parallel.expert_dispatch import AllToAll
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing

CPU = torch.device("cpu")
HIDDEN, EXPERTS, CHOSEN = 240, 16, 4
ROUNDS = ((3, 5), (0, 1), (0, 0), (40, 0), (20, 33))  # rows of each data group


def main() -> None:
    rank, datas, tensors, port = map(int, sys.argv[1:5])
    mesh = Mesh(data=datas, tensor=tensors)
    groups.join(rank, mesh.size, "127.0.0.1", port, CPU)
    met = connect_groups(rank, mesh, CPU, f"machine {rank}", 30.0, lambda other: f"rank {other}")
    place = mesh.place(rank)
    shard = Shard(tensor=place.tensor, tensors=tensors, data=place.data, datas=datas, spread=True)
    sharing = Sharing.of(shard, met, mesh, rank)
    assert isinstance(sharing.stage, GroupCollectives)
    assert find_deep_ep(3) is None, "it knows no groups of three"
    module = find_deep_ep(mesh.size)
    assert module is not None
    buffer = open_buffer(module, sharing.stage, 2 * 256)
    by_deep_ep = DeepEp(sharing, buffer, HIDDEN, EXPERTS)
    by_all_to_all = AllToAll(sharing, HIDDEN, EXPERTS)
    same = []
    for number, counts in enumerate(ROUNDS):
        torch.manual_seed(10 * number + place.data)  # a tensor group has the same rows
        rows = counts[place.data % 2]
        x = torch.randn(rows, HIDDEN).bfloat16()
        slots = torch.rand(rows, EXPERTS).argsort(dim=1)[:, :CHOSEN]
        wanted = _experts(x.repeat_interleave(CHOSEN, dim=0), slots.flatten()).view(rows, CHOSEN, HIDDEN)
        wanted = wanted[..., shard.own(HIDDEN)]
        same.append(all(torch.equal(way(x, slots, _experts), wanted) for way in (by_all_to_all, by_deep_ep)))
    carried = sharing.stage.traffic["expert outputs"]
    sys.stdout.write(f"{same} {buffer.calls} {carried.count}\n")
    sys.stdout.flush()
    sys.stdin.readline()


def _experts(rows: Tensor, slots: Tensor) -> Tensor:
    """Each slot's own function of a row."""
    return rows * slots.to(rows.dtype).add(1)[:, None] + rows.flip(1)


if __name__ == "__main__":
    main()
