"""R1's layers in small: 61, three of them dense, and a module, as one of eight ranks; one layer's weights serve all.

How many launches, syncs and copies a round has does not depend on sizes, so they are those of the real one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import Layout, random_config, write_checkpoint

from outrider.workers.model.cache import Cache
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.gpu_stage import Decoder, GpuModules, GpuStage
from outrider.workers.model.gpu_weights import GpuLoader
from outrider.workers.model.rotary import rotary_table
from outrider.workers.model.rows import Rows
from outrider.workers.model.shard import Shard
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.peer_memory import PeerMemory
from outrider.workers.parallel.sharing import Sharing

LAYERS, DENSE, BLOCK_SIZE = 61, 3, 64
SMALL = {
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 2, "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "num_hidden_layers": 2, "max_position_embeddings": 65536,
    "vocab_size": 512, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rope_scaling": None,
}  # fmt: skip


def small_checkpoint(path: Path, **changes: Any) -> Checkpoint:
    """A dense and a sparse layer, and a module, in FP8 blocks of 128."""
    write_checkpoint(path, random_config(1, **{**SMALL, **changes}), layout=Layout(fp8_block=128))
    return Checkpoint(path)


def slice_of_r1(
    checkpoint: Checkpoint, device: torch.device, blocks: int, layers: int = LAYERS
) -> tuple[GpuStage, GpuModules]:
    """A rank of eight, which hears of the others in its own kernels: here they have nothing to add."""
    config = ModelConfig.load(checkpoint.path)
    addresses, epochs = (torch.zeros(2, 8, dtype=kind, device=device) for kind in (torch.int64, torch.int32))
    peers = PeerMemory(addresses=addresses, epochs=epochs.flatten(), rank=0, group="")
    loader = GpuLoader(config=config, checkpoint=checkpoint, dtype=torch.bfloat16, device=device, shard=Shard())
    table = torch.from_numpy(rotary_table(config)).to(device)
    decoder = Decoder(config, Sharing(peers=peers), table, BLOCK_SIZE, torch.bfloat16)
    dense, sparse = loader.layer(0), loader.layer(1)
    stage = GpuStage(
        decoder,
        [dense] * min(DENSE, layers - 1) + [sparse] * max(layers - DENSE, 1),
        Cache(layers, decoder.width, BLOCK_SIZE, torch.bfloat16, device),
        embedding=loader.embedding(),
        norm=loader.tensor("model.norm.weight", config.hidden_size),
        head=loader.head(),
    )
    module = GpuModules.load(loader, stage, BLOCK_SIZE)
    stage.allocate_cache(blocks)
    module.allocate_cache(blocks)
    return stage, module


def decoding(sequences: int, rows: int, context: int) -> Rows:
    """A round of so many sequences with so much context, and `rows` query tokens of each."""
    each = -(-(context + rows) // BLOCK_SIZE)
    positions = np.tile(np.arange(context, context + rows), sequences)
    return Rows(
        token_ids=np.arange(sequences * rows) % 100,
        rope_positions=positions,
        cache_positions=positions,
        query_offsets=np.arange(sequences + 1) * rows,
        write_from=np.zeros(sequences, dtype=np.int64),
        block_offsets=np.arange(sequences + 1) * each,
        block_ids=np.arange(sequences * each)[::-1].copy(),
        first_slots=np.zeros(sequences, dtype=np.int64),
    )
