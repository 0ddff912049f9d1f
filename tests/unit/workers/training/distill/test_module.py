"""The trainable module against the engine's own, which is tested against a straight-line reference elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoints import YARN, Layout, random_config, write_checkpoint
from harvested import load_module
from rounds import Model, Rows, load_mtp, make_batch, random_tokens

BLOCKS = [4, 2, 9]
LENGTH, DEPTH = 14, 3
GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1}
KINDS: dict[str, dict[str, Any]] = {
    "grouped experts": GROUPS,
    "dense": {"first_k_dense_replace": 9},
    "no query latent": {**GROUPS, "q_lora_rank": None},
    "yarn": {**GROUPS, "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9}},
    "no shared expert": {**GROUPS, "n_shared_experts": 0},
    "weights not normed": {**GROUPS, "norm_topk_prob": False},
}


@pytest.mark.parametrize("group_size", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_from_every_start_it_drafts_as_the_engine_would(kind: str, group_size: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_config(3, vocab_size=97, **KINDS[kind]), seed=5)
    tokens = random_tokens(LENGTH + DEPTH, 97, seed=1)
    model = Model.load(tmp_path)
    truth = model.hidden(Rows(tokens, 0, BLOCKS))
    module, source = load_module(tmp_path, group_size)

    embedded = F.embedding(torch.tensor([tokens]), source.embedding())
    steps = list(module.unrolled(embedded, truth[None, :LENGTH].clone(), DEPTH))

    for start in range(LENGTH):
        engine = load_mtp(tmp_path, model.stages[0], blocks=12)
        pairs = Rows(tokens[1 : start + 2], 0, BLOCKS)
        state = engine.forward(make_batch([pairs], mtp=True), truth[: start + 1])[-1:]
        for step in range(DEPTH):
            assert torch.allclose(steps[step][0, start], state[0], atol=2e-4, rtol=1e-3), (start, step)
            draft = Rows([tokens[start + step + 2]], start + step + 1, BLOCKS) if step + 1 < DEPTH else None
            if draft is not None:
                state = engine.forward(make_batch([draft], mtp=True), state)


def test_a_quantised_checkpoint_is_read_in_full_precision(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "v_head_dim": 16, "num_attention_heads": 2}
    config = random_config(3, vocab_size=97, q_lora_rank=32, **{**GROUPS, **sizes})
    weights = write_checkpoint(tmp_path, {**config, "num_key_value_heads": 2}, seed=5, layout=Layout(fp8_block=16))

    module, _ = load_module(tmp_path, group_size=3)

    layer = f"model.layers.{config['num_hidden_layers']}."
    stacked = torch.stack([weights[f"{layer}mlp.experts.{e}.down_proj.weight"] for e in (3, 4, 5)])
    assert torch.equal(module.get_parameter("mlp.groups.1.down_proj"), stacked)
    assert torch.equal(module.get_parameter("self_attn.o_proj.weight"), weights[f"{layer}self_attn.o_proj.weight"])
