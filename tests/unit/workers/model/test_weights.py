import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import Layout, random_config, write_checkpoint
from rounds import load_mtp
from safetensors.torch import load_file, save_file
from torch import Tensor

from outrider.workers.model.deepseek import Stage
from outrider.workers.model.weights import Checkpoint
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig

CONFIG = random_config(1, first_k_dense_replace=1, q_lora_rank=24, num_hidden_layers=2)
DOWN = "model.layers.0.mlp.down_proj.weight"


def load_stage(path: Path, layers: range = range(2)) -> Stage:
    return Stage.load(
        ModelConfig.load(path), Checkpoint(path), layers,
        numerics="exact", device="cpu", dtype=torch.float32, block_size=16,
    )  # fmt: skip


def refusal(path: Path) -> str:
    """What is said when this checkpoint is loaded."""
    with pytest.raises(CheckpointError) as caught:
        load_stage(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(path: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace tensors of a single-file checkpoint; None leaves one out."""
    tensors = load_file(path / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path / "model.safetensors")


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(shards=4),
        Layout(dtype=torch.bfloat16),
        Layout(dtype=torch.float16, shards=2),
        Layout(fp8_block=16),
        Layout(fp8_block=128, shards=3),
    ],
    ids=["fp32", "fp32 in shards", "bf16", "fp16 in shards", "fp8", "fp8 in shards"],
)
def test_every_tensor_reads_as_it_was_written(layout: Layout, tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, CONFIG, layout=layout)
    checkpoint = Checkpoint(tmp_path)

    for name, tensor in written.items():
        assert torch.equal(checkpoint.tensor(name, torch.float32, tuple(tensor.shape)), tensor)


@pytest.mark.parametrize("layout", [Layout(), Layout(fp8_block=16)], ids=["fp32", "fp8"])
@pytest.mark.parametrize("rows", [slice(0, 7), slice(5, 21), slice(30, 32)])
def test_a_slice_of_rows_reads_as_those_rows_of_the_whole(layout: Layout, rows: slice, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    written = write_checkpoint(tmp_path, CONFIG, layout=layout)[name]

    got = Checkpoint(tmp_path).tensor(name, torch.float32, tuple(written.shape), rows)

    assert torch.equal(got, written[rows])


def test_what_is_read_is_the_callers_own(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, CONFIG)[DOWN]
    checkpoint = Checkpoint(tmp_path)

    checkpoint.tensor(DOWN, torch.float32, tuple(written.shape)).zero_()

    assert torch.equal(checkpoint.tensor(DOWN, torch.float32, tuple(written.shape)), written)


def test_mtp_weights_are_found_or_missed(tmp_path: Path) -> None:
    config = CONFIG
    write_checkpoint(tmp_path / "with", config)
    write_checkpoint(tmp_path / "without", config, layout=Layout(mtp=False))
    write_checkpoint(tmp_path / "two", {**config, "num_nextn_predict_layers": 2})

    def found(name: str, promised: int) -> int:
        shape = dataclasses.replace(ModelConfig.load(tmp_path / name), num_nextn_predict_layers=promised)
        return Checkpoint(tmp_path / name).mtp_modules(shape)

    assert [found("without", 1), found("with", 0), found("with", 1), found("with", 3), found("two", 3)] == [
        0,
        0,
        1,
        1,
        2,
    ]
    with pytest.raises(CheckpointError, match=r"no MTP weights \(model\.layers\.2\.eh_proj\.weight\)"):
        load_mtp(tmp_path / "without", load_stage(tmp_path / "without"))


def test_a_stage_reads_only_its_own_layers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    rewrite(tmp_path, {DOWN: None, "model.embed_tokens.weight": None})

    stage = load_stage(tmp_path, range(1, 2))

    assert stage.embedding is None
    assert stage.head is not None


def test_progress_hears_of_every_layer(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    heard: list[tuple[int, int]] = []

    Stage.load(
        ModelConfig.load(tmp_path), Checkpoint(tmp_path), range(2), numerics="fast", device="cpu",
        dtype=torch.float32, block_size=16, progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip

    assert heard == [(1, 2), (2, 2)]


def test_copies_hash_alike_and_other_weights_files_do_not(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", CONFIG)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    write_checkpoint(tmp_path / "sharded", CONFIG, layout=Layout(shards=2))
    write_checkpoint(tmp_path / "scaled", {**CONFIG, "routed_scaling_factor": 3.5})

    one, copy, sharded, scaled = (
        Checkpoint(tmp_path / name).content_hash() for name in ("one", "copy", "sharded", "scaled")
    )

    assert one == copy
    assert len({one, sharded, scaled}) == 3


def test_the_content_is_read_for_its_hash_once(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    checkpoint = Checkpoint(tmp_path)
    first = checkpoint.content_hash()

    (tmp_path / "model.safetensors").unlink()

    assert checkpoint.content_hash() == first


@pytest.mark.parametrize("hashed_whole", [1 << 30, 0], ids=["whole", "by samples"])
@pytest.mark.parametrize("shards", [1, 2])
def test_other_weights_of_the_same_shapes_hash_otherwise(hashed_whole: int, shards: int, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        write_checkpoint(tmp_path / name, CONFIG, seed, Layout(shards=shards))

    one, same, other = (Checkpoint(tmp_path / name).content_hash(hashed_whole) for name in ("one", "same", "other"))

    assert one == same
    assert one != other


@pytest.mark.parametrize(("hashed_whole", "same"), [(1 << 30, True), (0, False)], ids=["whole", "by samples"])
def test_a_file_written_anew_has_another_identity_where_its_content_is_known_by_samples(
    hashed_whole: int, same: bool, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, CONFIG)
    before = Checkpoint(tmp_path).identity(hashed_whole)
    again = Checkpoint(tmp_path).identity(hashed_whole)
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))

    assert again == before
    assert (Checkpoint(tmp_path).identity(hashed_whole) == before) == same
    rewrite(tmp_path, {DOWN: load_file(tmp_path / "model.safetensors")[DOWN] + 1})
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert Checkpoint(tmp_path).identity(hashed_whole) != before


@pytest.mark.parametrize("place", [0, 0.5, 1], ids=["first", "middle", "last"])
def test_a_change_at_the_beginning_the_middle_or_the_end_of_any_tensor_changes_the_sampled_hash(
    place: float, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, CONFIG)
    tensors = load_file(tmp_path / "model.safetensors")
    hashes = {Checkpoint(tmp_path).content_hash(0)}

    for name, tensor in tensors.items():
        tensor.view(-1)[int(place * (tensor.numel() - 1))] += 1
        rewrite(tmp_path, {name: tensor})
        hashes.add(Checkpoint(tmp_path).content_hash(0))

    assert len(hashes) == 1 + len(tensors)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    rewrite(tmp_path, {DOWN: None})

    assert f"checkpoint {tmp_path} has no tensor {DOWN}" in refusal(tmp_path)


def test_a_missing_shard_is_named_with_a_tensor_that_needs_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, layout=Layout(shards=3))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()

    said = refusal(tmp_path)

    assert "lacks model-00002-of-00003.safetensors" in said
    assert "for model." in said


def test_an_index_that_names_a_tensor_its_shard_lacks_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, layout=Layout(shards=2))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.0.nonsense"] = "model-00001-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    assert "model.layers.0.nonsense is in model-00001-of-00002.safetensors, but" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0.6, 0.999])
def test_a_truncated_file_is_named_with_the_tensor_that_is_cut(kept: float, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])

    assert f"{file} is truncated: it ends before the data of " in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "truncated"), (b"\x10\0\0\0\0\0\0\0{", "truncated"), (b"\4\0\0\0\0\0\0\0oops", "not a safetensors file")],
)
def test_a_file_that_is_no_safetensors_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").write_bytes(content)

    said = refusal(tmp_path)

    assert str(tmp_path / "model.safetensors") in said
    assert says in said


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").unlink()

    assert f"checkpoint {tmp_path} has no weights" in refusal(tmp_path)


def test_a_vocabulary_unlike_the_configs_is_named_with_both_sizes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    hidden = CONFIG["hidden_size"]
    rewrite(tmp_path, {"model.embed_tokens.weight": torch.zeros(50, hidden)})

    said = refusal(tmp_path)

    assert f"model.embed_tokens.weight has shape [50, {hidden}]" in said
    assert f"config.json calls for [{CONFIG['vocab_size']}, {hidden}]" in said


def test_fp8_weights_without_their_scales_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, layout=Layout(fp8_block=16))
    rewrite(tmp_path, {DOWN + "_scale_inv": None})

    assert f"no tensor {DOWN}_scale_inv" in refusal(tmp_path)


def test_fp8_scales_of_another_block_size_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, layout=Layout(fp8_block=16))
    rewrite(tmp_path, {DOWN + "_scale_inv": torch.ones(1, 1)})

    assert f"{DOWN}_scale_inv has shape [1, 1], but FP8 blocks call for" in refusal(tmp_path)


def test_fp8_weights_that_the_config_does_not_announce_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, layout=Layout(fp8_block=16))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    assert "is FP8, but config.json has no quantization_config" in refusal(tmp_path)
