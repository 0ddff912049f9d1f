"""A small FP8 model whose experts are spread over ranks, and its parts on one rank."""

from typing import Any

import numpy as np
import torch
from gpu.r1 import SMALL

from outrider.workers.experts.placement import IntArray
from outrider.workers.model.gpu.moving_experts import MovingExperts
from outrider.workers.model.gpu.weights import GpuLoader, GpuMoe
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.model_config import ModelConfig

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
