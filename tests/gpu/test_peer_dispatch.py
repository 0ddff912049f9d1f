"""Rows to spread experts and back over peer memory: the kernels on ranks that wait for each other in earnest."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gpu.peer_ranks import areas_of, on_processes
from torch import Tensor
from torch.nn import functional

from outrider.kernels.gpu import dispatch as kernels
from outrider.workers.parallel import peer_dispatch
from outrider.workers.parallel.peer_dispatch import PeerDispatch, dispatch_areas
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing

FloatArray = npt.NDArray[np.float32]
HIDDEN, PLACES, EACH = 24, 3, 2  # slots per rank
SHARDS = [(3, 1), (2, 2)]  # data groups, ranks of each


def _of_round(seed: int, datas: int, slots: int) -> list[tuple[Tensor, Tensor, int]]:
    """Each data group's rows and their slots, and how many of them are padding. Some groups have no rows."""
    random = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 5, (datas,), generator=random).tolist()
    paddings = torch.randint(0, 3, (datas,), generator=random).tolist()
    return [
        (
            torch.randn(count, HIDDEN, generator=random),
            torch.rand(count, slots, generator=random).argsort(dim=1)[:, :PLACES].int(),
            min(count, padding),
        )
        for count, padding in zip(counts, paddings, strict=True)
    ]


def _expert(row: Tensor, slot: int) -> Tensor:
    return row * (slot + 2) - slot


def _experts(rows: Tensor, slots: Tensor, own: range) -> Tensor:
    """Outputs of `own` slots; others are never read, so they are NaN here."""
    out = torch.full((*slots.shape, HIDDEN), torch.nan)
    for row, place in np.ndindex(*slots.shape):
        slot = int(slots[row, place])
        if slot in own:
            out[row, place] = _expert(rows[row], slot)
    return out.flatten(0, 1)


def _rank(rank: int, folder: Path, datas: int, tensors: int, rounds: int) -> list[FloatArray]:
    """The outputs of all rounds on one rank."""
    peer_dispatch.gather_rows, peer_dispatch.return_outputs = kernels.launch_gather, kernels.launch_return
    shard = Shard(tensor=rank % tensors, tensors=tensors, data=rank // tensors, datas=datas, spread=True)
    stage: Any = SimpleNamespace(rank=rank, size=datas * tensors)
    areas = areas_of(folder, stage.size, dispatch_areas(shard, HIDDEN, PLACES, torch.float32))
    for area in areas.areas:
        area.epochs.fill_(2**31 - 3)  # the counters wrap around during the test
    dispatch = PeerDispatch(Sharing(shard=shard, stage=stage), areas, HIDDEN, EACH * stage.size)
    own, found = range(rank * EACH, (rank + 1) * EACH), []
    for number in range(rounds):
        groups = _of_round(number, datas, EACH * stage.size)
        x, slots, padding = groups[shard.data]
        seen = torch.ones(len(x), 2, dtype=torch.int32)
        seen[len(x) - padding :] = 0
        most = max(1, *(len(rows) for rows, _, _ in groups))
        wider = functional.pad(slots, (0, 1))  # as with a shared expert: a row's slots are part of a wider row
        outputs = dispatch(x, wider[:, :PLACES], seen, most, lambda rows, slots: _experts(rows, slots, own))
        found.append(outputs.numpy())
    return found


@pytest.mark.parametrize(("datas", "tensors"), SHARDS)
def test_every_row_gets_its_outputs_in_rounds_of_any_size(tmp_path: Path, datas: int, tensors: int) -> None:
    rounds, ranks = 40, datas * tensors
    found = on_processes(ranks, _rank, tmp_path, datas, tensors, rounds)

    for rank, outputs in enumerate(found):
        own = Shard(tensor=rank % tensors, tensors=tensors).cut(HIDDEN).slice(rank % tensors)
        for number, made in enumerate(outputs):
            x, slots, padding = _of_round(number, datas, EACH * ranks)[rank // tensors]
            wanted = torch.zeros(*slots.shape, HIDDEN)
            for row, place in np.ndindex(len(x) - padding, PLACES):
                wanted[row, place] = _expert(x[row], int(slots[row, place]))
            assert np.array_equal(made, wanted[..., own].numpy())
