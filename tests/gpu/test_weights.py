"""GPU weights: FP8 stays FP8, ranks' slices add up to the whole, and R1's memory is what the planner says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Layout, random_config, write_checkpoint
from gpu.r1 import SMALL, small_checkpoint

from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.memory import stage_memory
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.split import Split
from outrider.kernels.reference import dequantized
from outrider.workers.model.gpu.decoder import Decoder, shape_obstacle
from outrider.workers.model.gpu.weights import GpuLoader, GpuMoe, Weight, bytes_of
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.model.model_shapes import Shapes

CPU, META = torch.device("cpu"), torch.device("meta")
FP8 = torch.float8_e4m3fn


def _loader(checkpoint: Checkpoint, shard: Shard) -> GpuLoader:
    config = ModelConfig.load(checkpoint.path)
    return GpuLoader(config=config, checkpoint=checkpoint, dtype=torch.bfloat16, device=CPU, shard=shard)


def _wide(weight: Weight) -> torch.Tensor:
    return dequantized(weight.values, weight.scale)


def test_fp8_weights_stay_fp8_experts_stacked(tmp_path: Path) -> None:
    checkpoint = small_checkpoint(tmp_path)
    loader = _loader(checkpoint, Shard(unit=128))
    layer = loader.layer(1)
    assert isinstance(layer.mlp, GpuMoe)
    stack = layer.mlp.experts

    assert {w.values.dtype for w in (layer.attention.down, layer.attention.output, stack.gate_up, stack.down)} == {FP8}
    assert stack.gate_up.values.shape == (17, 256, 256), "the shared expert is the last"
    name, shape = "model.layers.1.mlp.experts.3.", (128, 256)
    whole = [checkpoint.tensor(f"{name}{part}_proj.weight", torch.float32, shape) for part in ("gate", "up")]
    assert torch.equal(_wide(Weight(stack.gate_up.values[3], stack.gate_up.scale[3])), torch.cat(whole))
    assert loader.module(2).join.values.dtype == torch.bfloat16, "DeepSeek's checkpoints do not quantise it"


def test_fp8_blocks_that_the_kernels_do_not_support_are_widened(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_config(1, **SMALL), layout=Layout(fp8_block=64))
    layer = _loader(Checkpoint(tmp_path), Shard()).layer(0)

    assert layer.attention.down.scale is None
    assert layer.attention.down.values.dtype == torch.bfloat16


@pytest.mark.parametrize("tensors", [1, 2])
def test_ranks_slices_add_up_to_the_whole(tmp_path: Path, tensors: int) -> None:
    wider = {"moe_intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "v_head_dim": 32}
    checkpoint = small_checkpoint(tmp_path, **wider)
    whole = _loader(checkpoint, Shard(unit=128)).layer(1)
    ranks = [_loader(checkpoint, Shard(tensor=t, tensors=tensors, unit=128)).layer(1) for t in range(tensors)]
    assert isinstance(whole.mlp, GpuMoe)
    stacks = [rank.mlp.experts for rank in ranks if isinstance(rank.mlp, GpuMoe)]

    assert torch.equal(torch.cat([_wide(stack.down) for stack in stacks], dim=2), _wide(whole.mlp.experts.down))
    gates = torch.cat([_wide(stack.gate_up).chunk(2, dim=1)[0] for stack in stacks], dim=1)
    assert torch.equal(gates, _wide(whole.mlp.experts.gate_up).chunk(2, dim=1)[0])
    outputs = torch.cat([_wide(rank.attention.output) for rank in ranks], dim=1)
    assert torch.equal(outputs, _wide(whole.attention.output))


class _Written(Checkpoint):
    """A checkpoint with R1's shapes, on the meta device."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def is_fp8(self, name: str) -> bool:
        return not any(part in name for part in ("embed", "lm_head", "norm", "mlp.gate.", "eh_proj"))

    def dtype(self, name: str) -> torch.dtype | None:
        return FP8 if self.is_fp8(name) else torch.bfloat16

    def tensor(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], rows: Any = None, columns: Any = None
    ) -> torch.Tensor:
        cuts = [cut or slice(0, size) for cut, size in zip((rows, columns), shape, strict=False)]
        return torch.empty([cut.stop - cut.start for cut in cuts], dtype=dtype, device=META)

    def blocks(self, name: str, shape: tuple[int, int], rows: slice, columns: slice | None = None) -> Any:
        columns = columns or slice(0, shape[1])
        size = rows.stop - rows.start, columns.stop - columns.start
        scales = torch.empty([-(-each // 128) for each in size], device=META)
        return torch.empty(size, dtype=FP8, device=META), scales


_PLANS = [
    (141, Split(tensor=8), 0),
    (80, Split(tensor=8, pipeline=2), 0),
    (80, Split(tensor=8, data=2, expert=16), 0),
    (80, Split(data=16, expert=16), 0),
    (80, Split(tensor=4, data=4, expert=16), 32),
]


@pytest.mark.parametrize(("gpu_gb", "split", "redundant"), _PLANS, ids=str)
def test_r1_fits_in_the_memory_that_the_planner_says(gpu_gb: int, split: Split, redundant: int) -> None:
    """On 8 H200, or 16 H100: weights, MTP module, and cache for 64 sequences of 8k tokens, a data group's share."""
    model, stages = load_shape("deepseek-r1"), split.pipeline
    shard = Shard(tensors=split.tensor, datas=split.data, spread=split.spread, unit=128, redundant=redundant)
    loader = GpuLoader(config=model, checkpoint=_Written(model), dtype=torch.bfloat16, device=META, shard=shard)
    kinds = {moe: bytes_of(loader.layer(60 if moe else 0)) for moe in (False, True)}
    bounds = [model.num_hidden_layers * n // stages for n in range(stages + 1)]
    workload = Workload(concurrency=64, context=8192, numerics="fast", max_num_seqs=64, redundant_experts=redundant)
    for stage in range(stages):
        layers = range(bounds[stage], bounds[stage + 1])
        planned = stage_memory(Shapes.of(model), split, workload, Efficiency(), gpu_gb * 10**9, stage, layers)
        held = sum(kinds[model.is_moe_layer(layer)] for layer in layers)
        held += bytes_of(loader.embedding(), loader.module(61)) if stage == 0 else 0
        held += bytes_of(loader.head())

        assert abs(held - planned.weight_bytes) < 0.05 * planned.weight_bytes
        cache = 64 // split.data * 8192 * model.head_dim_latent * 2 * (len(layers) + (stage == 0))
        assert held + cache + planned.buffers + planned.runtime < gpu_gb * 10**9, "it fits"


@pytest.mark.parametrize(("fp8", "slot_bytes"), [(False, 1152), (True, 656)])
def test_a_token_of_r1_takes_so_many_bytes_of_each_layers_cache(fp8: bool, slot_bytes: int) -> None:
    config = load_shape("deepseek-r1")
    decoder = Decoder(config, Sharing(), torch.empty(1, 2, 64), 16, torch.bfloat16, fp8)

    assert decoder.cache(61).bytes_per_block == 61 * 16 * slot_bytes
    assert Shapes.of(config, kv_cache_dtype="fp8" if fp8 else "auto").cache_bytes(8) == slot_bytes


def test_kernels_support_r1_and_scout() -> None:
    assert shape_obstacle(load_shape("deepseek-r1")) is None
    assert shape_obstacle(load_shape("scout")) is None
