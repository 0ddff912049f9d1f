"""What training takes, computed from shapes; R1's figures against what is known of it."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import random_config, write_checkpoint
from harvested import load_module
from rounds import random_tokens
from torch import Tensor

from outrider.workers.training.distill.footprint import (
    activation_bytes,
    check_checkpoint,
    footprint,
    module_shape,
    tensor_shapes,
)
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

R1 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
    "intermediate_size": 18432, "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "num_attention_heads": 128,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1, "moe_intermediate_size": 2048,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "eos_token_id": 1,
    "max_position_embeddings": 163840,
}  # fmt: skip


@pytest.fixture
def r1(tmp_path: Path) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(R1))
    return ModelConfig.load(tmp_path)


def test_r1s_module_has_as_many_parameters_as_is_known(r1: ModelConfig) -> None:
    shapes = tensor_shapes(module_shape(r1, 16), "attention")

    trained, frozen = (sum(t.elements for t in shapes if t.trained is which) for which in (True, False))
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    norms = 5 * 7168 + 1536 + 512
    assert trained == attention + 2 * 7168 * 7168 + norms
    assert frozen == 257 * 3 * 7168 * 2048 + 256 * 7168
    assert len({tensor.name for tensor in shapes}) == len(shapes) == 256 * 3 + 3 + 1 + 5 + 2 + 6
    assert shapes[-1].name.startswith("model.layers.61.")


@pytest.mark.parametrize("world_size", [8, 16])
def test_all_of_r1s_module_fits_80_gb_gpus_under_zero_3_with_room_to_spare(r1: ModelConfig, world_size: int) -> None:
    def total(**changes: object) -> float:
        settings = TrainingSettings(batch_rows=16, window=512, **changes)  # type: ignore[arg-type]  # a table
        return footprint(r1, settings, world_size).gpu_bytes / 2**30

    assert total(zero_stage=3) < 60
    assert total(zero_stage=1) > total(zero_stage=2) + 10 > total(zero_stage=3) + 20
    assert total(zero_stage=3, offload="optimizer") < total(zero_stage=3) - 15 * 8 / world_size
    assert total(zero_stage=2, trained="attention") < 40


def test_partitions_and_bytes_by_part_add_up(r1: ModelConfig) -> None:
    found = footprint(r1, TrainingSettings(zero_stage=3, batch_rows=16), 16)

    assert found.partition_elements * 16 - found.trained_elements in range(16)
    assert found.gpu["optimizer states"] == found.partition_elements * 12
    assert found.gpu["embedding and head"] == 2 * 129280 * 7168 * 2
    assert found.gpu_bytes == sum(found.gpu.values())


def test_windows_that_cannot_be_dealt_out_are_refused(r1: ModelConfig) -> None:
    with pytest.raises(ValueError, match="batch_rows must be a multiple of ranks x accumulate = 16 x 1, got 24"):
        footprint(r1, TrainingSettings(batch_rows=24), 16)


def test_a_checkpoint_of_other_shapes_is_refused_by_name(tmp_path: Path) -> None:
    config = random_config(3, vocab_size=97)
    write_checkpoint(tmp_path, config)
    shapes = tensor_shapes(module_shape(ModelConfig.load(tmp_path), 4), "all")

    check_checkpoint(shapes, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "v_head_dim": config["v_head_dim"] * 2}))
    other = tensor_shapes(module_shape(ModelConfig.load(tmp_path), 4), "all")
    with pytest.raises(OutriderError, match=r"o_proj\.weight has shape|kv_b_proj\.weight has shape"):
        check_checkpoint(other, tmp_path)


def test_the_estimate_of_activations_is_near_what_the_backward_pass_keeps(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 48, "q_lora_rank": 32, "kv_lora_rank": 32, "v_head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16}
    changes = {**sizes, **heads, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_group": 1, "topk_group": 1}
    write_checkpoint(tmp_path, random_config(3, vocab_size=97, num_experts_per_tok=2, n_shared_experts=1, **changes))
    module, source = load_module(tmp_path, 4)
    settings = TrainingSettings(depth=3, window=96, batch_rows=4, dtype="float32")
    tokens = torch.tensor([random_tokens(99, 97, seed) for seed in range(4)])
    states = torch.randn(4, 96, 64)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive = list(module.unrolled(torch.nn.functional.embedding(tokens, source.embedding()), states, 3))
    weights = sum(parameter.nbytes for parameter in module.parameters())

    estimate = activation_bytes(ModelConfig.load(tmp_path), settings, 1)
    assert len(alive) == 3
    assert 0.6 < estimate / (sum(kept.values()) - weights) < 1.6
