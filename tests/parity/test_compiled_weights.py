"""What the compiled kernels make of weights in every precision, and what their cache holds, against PyTorch."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Layout, random_config, rewrite, write_checkpoint
from rounds import CompiledModel, Model, Rows, random_tokens, relative_errors
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.cpu.library import BFLOAT16, INT8, STRETCH_8
from outrider.workers.config import resolve_model


@pytest.mark.parametrize("layout", [Layout(dtype=torch.bfloat16), Layout(fp8_block=16)], ids=["bf16", "fp8"])
def test_low_precision_files_are_computed_with_in_float32(layout: Layout, tmp_path: Path) -> None:
    config = random_config(11, first_k_dense_replace=1)
    write_checkpoint(tmp_path, config, layout=layout)

    torchs, compiled = Model.load(tmp_path), CompiledModel.load(tmp_path)
    part = Rows(random_tokens(60, config["vocab_size"], 0), 0, range(4))

    got, wanted = compiled.hidden(part), torchs.hidden(part)

    assert relative_errors(got, wanted).max() < 1e-4
    assert relative_errors(compiled.logits(got), torchs.logits(wanted)).max() < 1e-4


def in_8_bits(config: dict[str, Any], name: str, weight: Tensor) -> Tensor:
    """`weight` as 8-bit weights hold it: by stretches of inputs, and kv_b_proj's keys as they are used, transposed."""

    def held(values: Tensor) -> Tensor:
        return torch.from_numpy(reference.dequantized_int8(values.contiguous().numpy(), STRETCH_8)).float()

    if weight.dim() == 1 or "mlp.gate." in name or "embed_tokens" in name:
        return weight
    if "kv_b_proj" not in name:
        return held(weight)
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    by_head = weight.view(heads, -1, weight.shape[1])
    parts = [torch.cat([held(head[:nope].T).T, held(head[nope:])]) for head in by_head]
    return torch.cat(parts)


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_an_8_bit_model_is_torchs_with_the_weights_that_8_bits_hold(seed: int, tmp_path: Path) -> None:
    config = random_config(seed, hidden_size=200)
    for folder in ("plain", "held"):
        write_checkpoint(tmp_path / folder, config, seed)
    rewrite(tmp_path / "held", partial(in_8_bits, config))
    torchs, compiled = Model.load(tmp_path / "held"), CompiledModel.load(tmp_path / "plain", quantization="int8")
    part = Rows(random_tokens(60, config["vocab_size"], 0), 0, range(4))

    got, wanted = compiled.hidden(part), torchs.hidden(part)

    assert relative_errors(got, wanted).max() < 1e-4
    assert relative_errors(compiled.logits(got), torchs.logits(wanted)).max() < 1e-4
    assert relative_errors(got, Model.load(tmp_path / "plain").hidden(part)).min() > 1e-4, "nothing was quantised"


def test_a_bf16_model_is_torchs_in_float32_but_for_the_rounding_of_its_cache(tmp_path: Path) -> None:
    config = random_config(2, first_k_dense_replace=9, num_hidden_layers=2)
    write_checkpoint(tmp_path, config, layout=Layout(dtype=torch.bfloat16))
    torchs, compiled = Model.load(tmp_path), CompiledModel.load(tmp_path, dtype=torch.bfloat16)
    part = Rows(random_tokens(60, config["vocab_size"], 0), 0, range(4))

    found = relative_errors(compiled.hidden(part), torchs.hidden(part))

    assert 1e-5 < found.max() < 0.02


def test_a_cache_in_bf16_holds_the_nearest_of_what_one_in_float32_holds(tmp_path: Path) -> None:
    """Of the first layer, whose rows come from the same weights and no cache."""
    config = random_config(2)
    write_checkpoint(tmp_path, config, layout=Layout(dtype=torch.bfloat16))
    wide, narrow = CompiledModel.load(tmp_path), CompiledModel.load(tmp_path, dtype=torch.bfloat16)
    for model in (wide, narrow):
        model.hidden(Rows(random_tokens(60, config["vocab_size"], 0), 0, range(4)))

    held = wide.cached(range(60)).view(torch.float32)[0]

    assert torch.equal(narrow.cached(range(60)).view(torch.bfloat16)[0], held.bfloat16())


def latent_size(config: dict[str, Any]) -> int:
    return int(config["kv_lora_rank"] + config["qk_rope_head_dim"])


@pytest.mark.parametrize("seed", [0, 3])
def test_the_cache_holds_torchs_latents_and_zeros_up_to_whole_vectors(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    write_checkpoint(tmp_path, config, seed)
    part = Rows(random_tokens(50, config["vocab_size"], 0), 0, [3, 1, 2, 0])
    slots = [block * 16 + offset for block in part.blocks for offset in range(16)][:50]
    torchs, compiled = Model.load(tmp_path), CompiledModel.load(tmp_path)
    torchs.hidden(part)
    compiled.hidden(part)

    found = compiled.cached(slots).view(torch.float32)

    torch.testing.assert_close(
        found[..., : latent_size(config)], torchs.cached(slots).view(torch.float32), rtol=1e-4, atol=1e-5
    )
    assert not found[..., latent_size(config) :].any()
    assert found.shape[-1] == -(-latent_size(config) // 16) * 16


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, (BFLOAT16, BFLOAT16)),
        ({"draft_quantization": "int8"}, (BFLOAT16, INT8)),
        ({"quantization": "int8"}, (INT8, INT8)),
    ],
)
def test_what_drafts_has_weights_of_its_own_kind_and_a_head_of_its_own_where_that_differs(
    settings: dict[str, Any], kinds: tuple[int, int]
) -> None:
    model = CompiledModel.load(resolve_model("scout"), drafts=True, **settings)
    assert model.module is not None
    (stage,), (module,), head = model.stages, model.module._modules, model.module._head.linear

    assert (stage.head.kind, head.kind) == kinds
    assert (head is stage.head) == (kinds[0] == kinds[1])
    assert module.join.contents.kind == kinds[1]
    assert module.layer.contents.attention.output.kind == kinds[1]
    assert module.layer.contents.routed.contents.slots[0].down.kind == kinds[1]
    assert module.layer.contents.dense.down.kind == kinds[1]
    assert {layer.attention.output.kind for layer in stage._layers} == {kinds[0]}
