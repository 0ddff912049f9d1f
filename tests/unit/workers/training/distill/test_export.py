"""Trained tensors in a copy of the checkpoint, of which nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Layout, random_config, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from outrider.workers.model.weights import Checkpoint
from outrider.workers.training.distill.export import compare, export
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

LAYOUTS = {
    "one file": Layout(dtype=torch.bfloat16),
    "shards": Layout(dtype=torch.bfloat16, shards=5),
    "fp8 shards": Layout(fp8_block=16, shards=5),
}
TRAINED = ("self_attn.o_proj.weight", "eh_proj.weight", "shared_head.norm.weight", "mlp.experts.1.down_proj.weight")


def make(folder: Path, layout: Layout) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint with a tokenizer beside it, and other values for some tensors of its MTP module."""
    config = random_config(3, vocab_size=97, first_k_dense_replace=1, n_routed_experts=4, n_group=1, topk_group=1)
    config |= {"num_experts_per_tok": 2}
    weights = write_checkpoint(folder / "model", config, seed=1, layout=layout)
    (folder / "model" / "tokenizer.json").write_text("{}")
    layer = f"model.layers.{config['num_hidden_layers']}."
    return config, {layer + name: weights[layer + name] * 1.5 + 0.01 for name in TRAINED}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_trained_tensors_are_there_and_every_other_byte_is_the_same(layout: str, tmp_path: Path) -> None:
    _, trained = make(tmp_path, LAYOUTS[layout])
    save_file(trained, tmp_path / "trained.safetensors")

    report = export(tmp_path / "model", tmp_path / "trained.safetensors", tmp_path / "out")

    config, checkpoint = ModelConfig.load(tmp_path / "out"), Checkpoint(tmp_path / "out")
    for name, tensor in trained.items():
        read = checkpoint.tensor(name, torch.float32, tuple(tensor.shape))
        assert torch.allclose(read, tensor, rtol=0.07 if "fp8" in layout and tensor.dim() == 2 else 0.01, atol=0.02), (
            name
        )
    for file in (tmp_path / "model").glob("*.safetensors"):
        with safe_open(file, "pt") as before, safe_open(tmp_path / "out" / file.name, "pt") as after:
            assert before.keys() == after.keys()
            same = {n for n in before.keys() if _bits(before.get_tensor(n)).equal(_bits(after.get_tensor(n)))}  # noqa: SIM118
            assert {name.removesuffix("_scale_inv") for name in set(before.keys()) - same} <= set(trained)
    assert {name.removesuffix("_scale_inv") for name in report.changed} == set(trained)
    assert config == ModelConfig.load(tmp_path / "model")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_a_file_without_trained_tensors_is_linked_and_the_original_is_never_written(tmp_path: Path) -> None:
    _, trained = make(tmp_path, LAYOUTS["shards"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    save_file({name: trained[name] for name in list(trained)[:1]}, tmp_path / "trained.safetensors")

    report = export(tmp_path / "model", tmp_path / "trained.safetensors", tmp_path / "out")

    same = [f.name for f in (tmp_path / "model").glob("*.safetensors") if f.samefile(tmp_path / "out" / f.name)]
    assert report.linked_files == len(same) == 4
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_another_tensor_that_changed_is_found(tmp_path: Path) -> None:
    _, trained = make(tmp_path, LAYOUTS["one file"])
    save_file(trained, tmp_path / "trained.safetensors")
    export(tmp_path / "model", tmp_path / "trained.safetensors", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, tmp_path / "out" / "model.safetensors")

    with pytest.raises(OutriderError, match=r"model\.norm\.weight has changed, and was not trained"):
        compare(tmp_path / "model", tmp_path / "out", written=trained)


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    make(tmp_path, LAYOUTS["one file"])
    save_file({"model.layers.9.eh_proj.weight": torch.zeros(2)}, tmp_path / "strange.safetensors")
    save_file({"model.norm.weight": torch.zeros(2)}, tmp_path / "short.safetensors")

    for file, why in (("strange", "no such tensor"), ("short", "trained with shape")):
        with pytest.raises(OutriderError, match=why):
            export(tmp_path / "model", tmp_path / f"{file}.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    _, trained = make(tmp_path, LAYOUTS["one file"])
    save_file(trained, tmp_path / "trained.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.json").write_text(json.dumps("mine"))

    with pytest.raises(OutriderError, match="exists already"):
        export(tmp_path / "model", tmp_path / "trained.safetensors", tmp_path / "out")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
