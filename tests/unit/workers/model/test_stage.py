from pathlib import Path

import pytest
import torch
from checkpoints import random_config, write_checkpoint
from rounds import Model, Rows, load_mtp, make_batch, random_tokens

from outrider.workers.model.batch import Batch

CONFIG = random_config(4, first_k_dense_replace=1)
BLOCKS = [3, 4, 5, 6]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, CONFIG)
    return tmp_path


def test_a_block_takes_the_bytes_that_a_stage_says(path: Path) -> None:
    latent = CONFIG["kv_lora_rank"] + CONFIG["qk_rope_head_dim"]
    wide, narrow = (Model.load(path, dtype=dtype).stages[0] for dtype in (torch.float32, torch.bfloat16))

    assert wide.cache_bytes_per_block == CONFIG["num_hidden_layers"] * 16 * latent * 4
    assert narrow.cache_bytes_per_block == wide.cache_bytes_per_block // 2
    assert load_mtp(path, wide).cache_bytes_per_block == 16 * latent * 4


def test_the_last_block_is_as_good_as_any(path: Path) -> None:
    model, tokens = Model.load(path, blocks=8), random_tokens(10, CONFIG["vocab_size"], 0)

    first, last = (model.hidden(Rows(tokens, 0, [block])) for block in (0, 7))

    assert torch.equal(first, last)


def test_an_empty_round_passes_through(path: Path) -> None:
    model = Model.load(path)
    mtp = load_mtp(path, model.stages[0])
    batch: Batch = make_batch([Rows([], 0, BLOCKS)])

    hidden = model.stages[0](batch, model.stages[0].embed(batch))

    assert hidden.shape == (0, CONFIG["hidden_size"])
    assert mtp.forward(batch, hidden).shape == hidden.shape
    assert model.logits(hidden).shape == (0, CONFIG["vocab_size"])


def test_bfloat16_computes_the_same_model_and_keeps_a_rows_bits(path: Path) -> None:
    """In bfloat16 too a row's bits are its own; and they are the float32 model's within its precision."""
    wide, narrow = Model.load(path), Model.load(path, dtype=torch.bfloat16)
    tokens = random_tokens(40, CONFIG["vocab_size"], 0)
    wanted, got = (model.hidden(Rows(tokens, 0, BLOCKS)) for model in (wide, narrow))

    alone = torch.cat([narrow.hidden(Rows([token], position, BLOCKS)) for position, token in enumerate(tokens)])

    assert torch.equal(alone, got)
    similarity = torch.nn.functional.cosine_similarity(got.float(), wanted, dim=-1)
    assert similarity.median() > 0.99


def test_logits_are_float32_whatever_the_models_type(path: Path) -> None:
    model = Model.load(path, dtype=torch.bfloat16)

    assert model.logits(model.hidden(Rows([1, 2], 0, BLOCKS))).dtype == torch.float32
