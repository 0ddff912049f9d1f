"""A small FP8 model whose experts are spread over ranks, its parts on one rank, and another rank for that one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gpu.pretend_cuda import PretendTensor, inner
from gpu.r1 import SMALL
from torch import Tensor

from outrider.workers.experts.placement import IntArray
from outrider.workers.model.gpu.moving_experts import MovingExperts
from outrider.workers.model.gpu.weights import GpuLoader, GpuMoe
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.collectives.peer_memory import OpenArea, PeerAreas
from outrider.workers.parallel.peer_dispatch import dispatch_areas
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.model.model_config import ModelConfig

CPU = torch.device("cpu")
HIDDEN, EXPERTS, CHOSEN, WIDTH = SMALL["hidden_size"], SMALL["n_routed_experts"], SMALL["num_experts_per_tok"], 256
WIDER = {"intermediate_size": 512, "moe_intermediate_size": WIDTH}  # which two ranks can share


def loader_of(checkpoint: Checkpoint, shard: Shard, **settings: Any) -> GpuLoader:
    config = ModelConfig.load(checkpoint.path)
    return GpuLoader(
        config=config, checkpoint=checkpoint, device=CPU, shard=shard, **{"dtype": torch.float32, **settings}
    )


def moe_layer(loader: GpuLoader) -> GpuMoe:
    mlp = loader.layer(1).mlp
    assert isinstance(mlp, GpuMoe)
    return mlp


def moving_of(mlp: GpuMoe) -> MovingExperts:
    assert mlp.moving is not None
    return mlp.moving


def random_table(random: np.random.Generator, ranks: int, slots: int) -> IntArray:
    """Every expert somewhere, and no two copies on one rank."""
    while True:
        table = np.stack([random.permutation(EXPERTS)[:slots] for _ in range(ranks)])
        if len(np.unique(table)) == EXPERTS:
            return table


class Partner:
    """A stage's group of two. The other rank has no rows, and answers with zeros. Implements Collectives."""

    name, rank, size = "a test", 0, 2
    traffic: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.calls = 0

    def gather(self, part: Tensor, purpose: str, root: int | None = None) -> Tensor:
        return self._received(inner(part).unsqueeze(0), torch.zeros_like(inner(part)).unsqueeze(0), part)

    def exchange(self, sent: Tensor, sent_rows: Sequence[int], received_rows: Sequence[int], purpose: str) -> Tensor:
        own = inner(sent)[: sent_rows[0]]
        return self._received(own, own.new_zeros(received_rows[1], *own.shape[1:]), sent)

    def close(self) -> None: ...

    def _received(self, own: Tensor, others: Tensor, sent: Tensor) -> Tensor:
        self.calls += 1
        both = torch.cat([own, others])
        return PretendTensor(both, sent.device) if isinstance(sent, PretendTensor) else both


def closed_areas(shard: Shard, device: torch.device) -> PeerAreas:
    """Of a stage whose other ranks have only padding. Twins use no addresses."""
    ranks = shard.datas * shard.tensors
    areas = dispatch_areas(shard, HIDDEN, CHOSEN, torch.bfloat16)
    opened = (
        OpenArea(
            torch.zeros(2, ranks, dtype=torch.int64, device=device),
            torch.zeros(area.rows, dtype=torch.int32, device=device),
            area.row_bytes,
        )
        for area in areas
    )
    return PeerAreas(areas=tuple(opened), group="")
