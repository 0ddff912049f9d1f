"""A small model with R1's structure, as one rank of eight: 61 layers, three of them dense, and an MTP module.

One dense and one MoE layer's weights are used for all layers. Launches, syncs and copies of a round do not depend on
sizes, so the counts are those of R1.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import Layout, random_config, write_checkpoint

from outrider.workers.engine.execution.pipeline import RoundResult, SingleStage
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.model.gpu.decoder import Decoder
from outrider.workers.model.gpu.stage import GpuModules, GpuStage
from outrider.workers.model.gpu.weights import GpuLoader
from outrider.workers.model.rotary import rotary_table
from outrider.workers.model.rows import Rows
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.collectives.peer_memory import PeerMemory
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.sampling.gpu_head import GpuHead
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.round import Round, SequenceStart

LAYERS, DENSE, BLOCK_SIZE = 61, 3, 64
SMALL = {
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 2, "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "num_hidden_layers": 2, "max_position_embeddings": 65536,
    "vocab_size": 512, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rope_scaling": None,
}  # fmt: skip


def small_checkpoint(path: Path, **changes: Any) -> Checkpoint:
    """A dense layer, an MoE layer and an MTP module, in FP8 with blocks of 128."""
    write_checkpoint(path, random_config(1, **{**SMALL, **changes}), layout=Layout(fp8_block=128))
    return Checkpoint(path)


def slice_of_r1(
    checkpoint: Checkpoint, device: torch.device, blocks: int, layers: int = LAYERS, sharing: Sharing | None = None
) -> tuple[GpuStage, GpuModules]:
    """One rank of eight, with the fused all-reduce (kernels/gpu/reduce.py); the other ranks add nothing here.

    With `sharing`, its rank instead.
    """
    config = ModelConfig.load(checkpoint.path)
    sharing = sharing or Sharing(peers=_peers(config, device))
    loader = GpuLoader(config=config, checkpoint=checkpoint, dtype=torch.bfloat16, device=device, shard=sharing.shard)
    table = torch.from_numpy(rotary_table(config)).to(device)
    decoder = Decoder(config, sharing, table, BLOCK_SIZE, torch.bfloat16)
    dense, sparse = loader.layer(0), loader.layer(1)
    stage = GpuStage(
        decoder,
        [dense] * min(DENSE, layers - 1) + [sparse] * max(layers - DENSE, 1),
        decoder.cache(layers),
        embedding=loader.embedding(),
        norm=loader.tensor("model.norm.weight", config.hidden_size),
        head=loader.head(),
    )
    module = GpuModules.load(loader, stage)
    stage.allocate_cache(blocks)
    module.allocate_cache(blocks)
    return stage, module


def _peers(config: ModelConfig, device: torch.device) -> PeerMemory:
    addresses, epochs = (torch.zeros(2, 8, dtype=kind, device=device) for kind in (torch.int64, torch.int32))
    return PeerMemory(addresses=addresses, epochs=epochs.flatten(), rank=0, group="", row_bytes=2 * config.hidden_size)


def decoding(sequences: int, rows: int, context: int) -> Rows:
    """A decoding round: `sequences` with `context` cached tokens each, and `rows` query tokens each."""
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


def sequence_starts(sequences: int) -> SequenceStarts:
    """Sequences 0, 1, .. with temperature 0.7."""
    starts = SequenceStarts((1,))
    params = SamplingParams(temperature=0.7, max_tokens=None, ignore_eos=True)
    starts.begin(
        SequenceStart(sequence_id=n, params=params, seed=n, output_index=0, prompt_tokens=4) for n in range(sequences)
    )
    return starts


def run_round(stage: GpuStage, sequences: int, rows: int, context: int) -> RoundResult:
    """A decoding round, as the engine of a single stage runs it: upload, layers, head, draws, verdict."""
    starts = sequence_starts(sequences)
    sampler = Sampler(GpuHead(stage, starts), starts, context + rows + 1)
    pipeline = SingleStage(StageRunner(stage, stage.decoder.device, waits=False), sampler)
    pipeline.dispatch(decoding_round(sequences, rows, context))
    return pipeline.collect()


def decoding_round(sequences: int, rows: int, context: int, draft_steps: int = 0) -> Round:
    """A round of those rows, all but each sequence's first being drafts. The drafter follows all sequences."""
    shape = decoding(sequences, rows, context)
    return Round(
        sequence_ids=np.arange(sequences),
        query_offsets=shape.query_offsets,
        token_ids=shape.token_ids,
        starts=np.full(sequences, context),
        write_from=shape.write_from,
        sample_counts=np.full(sequences, rows),
        score_counts=np.zeros(sequences, dtype=np.int64),
        next_token_ids=np.zeros(sequences, dtype=np.int64),
        block_offsets=shape.block_offsets,
        block_ids=shape.block_ids,
        draft_steps=np.full(sequences, draft_steps),
        follows=np.ones(sequences, dtype=np.int64),
        followed_from=np.ones(sequences, dtype=np.int64),
    )
