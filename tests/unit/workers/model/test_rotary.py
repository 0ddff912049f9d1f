import json
from pathlib import Path

import pytest
import torch
from checkpoints import YARN, random_config
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

from outrider.workers.model.rotary import Rotary, frequencies, rotate
from outrider.workers.types.model.model_config import ModelConfig

R1_YARN = {**YARN, "factor": 40, "original_max_position_embeddings": 4096}
SCALINGS = [
    None,
    YARN,
    R1_YARN,
    {**YARN, "mscale": 0.7},
    {"type": "yarn", "factor": 8, "original_max_position_embeddings": 32},
]


def load(path: Path, scaling: object, rope: int = 64) -> ModelConfig:
    fields = random_config(0, rope_scaling=scaling, qk_rope_head_dim=rope, max_position_embeddings=300)
    (path / "config.json").write_text(json.dumps(fields))
    return ModelConfig.load(path)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_and_scale_are_transformers(scaling: object, tmp_path: Path) -> None:
    config = load(tmp_path, scaling)
    oracle = DeepseekV3RotaryEmbedding(DeepseekV3Config.from_pretrained(tmp_path))

    assert torch.allclose(torch.from_numpy(frequencies(config)), oracle.inv_freq, rtol=1e-6)
    scale = config.yarn.rotation_scale if config.yarn else 1.0
    assert scale == pytest.approx(oracle.attention_scaling)


@pytest.mark.parametrize("rope", [2, 6, 64])
def test_pairs_turn_as_complex_numbers(rope: int, tmp_path: Path) -> None:
    config = load(tmp_path, None, rope)
    positions, x = torch.tensor([0, 1, 17, 299]), torch.randn(4, 3, rope, generator=torch.Generator().manual_seed(0))
    angle_error = 299 * 2**-24  # of float32, as transformers has it

    got = rotate(x, Rotary(config, torch.device("cpu")).at(positions))

    angles = torch.outer(positions.double(), torch.from_numpy(frequencies(config)).double())
    turned = torch.view_as_complex(x.double().view(4, 3, -1, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    assert torch.allclose(
        got.double(), torch.view_as_real(turned).flatten(-2), atol=float(4 * x.abs().max()) * angle_error
    )
    assert torch.equal(got[0], x[0])
