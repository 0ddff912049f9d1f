"""Packed weights that ranks share through a folder: the same bits, made once, found when they are damaged."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import random_config, rewrite, write_checkpoint
from rounds import WEIGHTS, CompiledModel, Rows, random_tokens

from outrider import LLM, SamplingParams
from outrider.kernels.cpu.packed_file import MappedWeights
from outrider.kernels.cpu.packing import Packer
from outrider.workers.config import resolve_model
from outrider.workers.model.compiled import weight_cache
from outrider.workers.model.compiled.loading import CompiledLoader
from outrider.workers.model.compiled.weight_cache import WeightCache
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig

PARTNER = Path(__file__).with_name("weight_cache_partner.py")
ROOM = 1 << 30
KV_CACHE = 64 << 20
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "vocab_size": 97, "n_routed_experts": 8, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "model"
    write_checkpoint(folder, random_config(6, **SHAPE), seed=6)
    return folder


def cache(folder: Path, checkpoint: Path, max_bytes: int = ROOM) -> WeightCache:
    return WeightCache(folder, max_bytes, Checkpoint(checkpoint))


def load(checkpoint: Path, folder: Path | None = None, **settings: Any) -> CompiledModel:
    own = cache(folder, checkpoint) if folder is not None else None
    return CompiledModel.load(checkpoint, drafts=True, cache=own, **settings)


def logits(model: CompiledModel) -> torch.Tensor:
    return model.logits(model.hidden(Rows(random_tokens(20, 97, 0), 0, range(2))))


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """By name: which file it is, and when it was made."""
    return {file: (file.stat().st_ino, file.stat().st_ctime_ns) for file in sorted(folder.rglob("*")) if file.is_file()}


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_have_the_same_bits_without_a_cache_with_an_empty_and_with_a_full_one(
    weights: str, path: Path, tmp_path: Path
) -> None:
    wanted = logits(load(path, **WEIGHTS[weights]))

    first = logits(load(path, tmp_path, **WEIGHTS[weights]))
    made = contents(tmp_path)
    second = logits(load(path, tmp_path, **WEIGHTS[weights]))

    assert torch.equal(first, wanted)
    assert torch.equal(second, wanted)
    assert {file.name.rsplit("-", 1)[0] for file in made} == {
        "embedding", "head", "layer-0", "layer-1", "experts-1", "layer-2", "experts-2", "module-2",
    }  # fmt: skip
    assert contents(tmp_path) == made


def test_a_second_start_reads_no_weights(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "model")
    config, checkpoint = ModelConfig.load(path), Checkpoint(tmp_path / "model")
    own = WeightCache(tmp_path / "cache", ROOM, checkpoint)

    def load_again() -> None:
        loader = CompiledLoader(
            config, checkpoint, dtype=torch.float32, quantization=None, block_size=16, fast=True, cache=own
        )
        loader.layers(range(2))
        loader.head()

    load_again()
    (tmp_path / "model" / "model.safetensors").unlink()
    load_again()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_again()


@contextmanager
def partners(path: Path, folder: Path, count: int) -> Iterator[list["subprocess.Popen[str]"]]:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent / "src")])}
    command = [sys.executable, str(PARTNER), str(path), str(folder)]
    started = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def said(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def asked(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process)


def test_processes_that_start_at_once_pack_once_and_share_every_page(path: Path, tmp_path: Path) -> None:
    with partners(path, tmp_path, 2) as started:
        loaded = [said(process) for process in started]
        memory = [asked(process) for process in started]

    assert sum(each["made"] for each in loaded) == len(files(tmp_path)) == 8
    assert loaded[0]["logits"] == loaded[1]["logits"] == logits(load(path)).tolist()
    for each in memory:
        assert each["writable"] == 0
        assert each["Rss"] > 0
        assert each["Private_Clean"] + each["Private_Dirty"] == 0
        assert each["Pss"] <= each["Rss"] // 2 + 8


@pytest.mark.parametrize("harm", ["a byte", "the end", "everything"])
def test_a_damaged_file_is_named_in_one_line_and_made_anew(
    harm: str, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = logits(load(path, tmp_path))
    good, victim = contents(tmp_path), next(tmp_path.rglob("experts-1-*"))
    content = bytearray(good[victim])
    content[len(content) // 3] ^= 1
    victim.write_bytes({"a byte": bytes(content), "the end": good[victim][:-1], "everything": b""}[harm])

    got = logits(load(path, tmp_path))

    assert torch.equal(got, wanted)
    assert contents(tmp_path) == good
    assert len(caplog.messages) == 1
    assert f"{victim} is damaged (" in caplog.messages[0]


def test_whatever_decides_the_bytes_has_files_of_its_own(path: Path, tmp_path: Path) -> None:
    changed, folder = tmp_path / "changed", tmp_path / "cache"
    shutil.copytree(path, changed)
    rewrite(changed, lambda name, values: values + 1 if name == "model.layers.0.mlp.down_proj.weight" else values)
    ids = [np.array(ids, dtype=np.int32) for ids in ([1, 2, 3], [1, 2, 4])]
    variants: list[tuple[Path, dict[str, Any]]] = [
        (path, {}),
        (changed, {}),
        (path, {"dtype": torch.bfloat16}),
        (path, {"quantization": "int8"}),
        (path, {"numerics": "fast"}),
    ]

    counts = []
    for checkpoint, settings in variants:
        got = logits(load(checkpoint, folder, **settings))
        assert torch.equal(got, logits(load(checkpoint, **settings)))
        counts.append(len(files(folder)))
    assert counts == [8, 16, 24, 32, 40]
    for head in ids:
        load(path, folder, head_ids=head)
    assert len(files(folder)) == 42


def shared_out(shard: Shard, path: Path, folder: Path) -> set[str]:
    """Names of the files that were made for the layers of a rank."""
    before = set(files(folder))
    loader = CompiledLoader(
        ModelConfig.load(path), Checkpoint(path), dtype=torch.float32, quantization=None, block_size=16,
        sharing=Sharing(shard=shard), cache=cache(folder, path),
    )  # fmt: skip
    loader.layers(range(2))
    return {file.name.rsplit("-", 1)[0] for file in set(files(folder)) - before}


def test_ranks_share_what_the_split_leaves_whole(path: Path, tmp_path: Path) -> None:
    layers = {"layer-0", "layer-1", "experts-1"}

    assert shared_out(Shard(data=0, datas=2), path, tmp_path) == layers
    assert shared_out(Shard(data=1, datas=2), path, tmp_path) == set()
    assert shared_out(Shard(data=0, datas=2, spread=True), path, tmp_path) == {f"expert-1-{n}" for n in range(4)}
    assert shared_out(Shard(data=1, datas=2, spread=True), path, tmp_path) == {f"expert-1-{n}" for n in range(4, 8)}
    assert shared_out(Shard(tensor=0, tensors=2), path, tmp_path) == layers
    assert shared_out(Shard(tensor=1, tensors=2), path, tmp_path) == layers


def test_what_a_killed_writer_left_is_written_over(path: Path, tmp_path: Path) -> None:
    wanted = logits(load(path, tmp_path))
    for file in files(tmp_path):
        file.rename(file.with_suffix(".part"))

    assert torch.equal(logits(load(path, tmp_path)), wanted)
    assert {file.suffix for file in files(tmp_path)} == {".packed"}


def test_a_folder_that_cannot_be_written_is_said_once_and_does_without(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")

    got = logits(load(path, tmp_path / "file"))

    assert torch.equal(got, logits(load(path)))
    assert len(caplog.messages) == 1
    assert "weight_cache_dir: cannot keep" in caplog.messages[0]
    assert "Not a directory" in caplog.messages[0]


def test_loaders_that_fail_at_one_time_warn_once(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)

    def fails_beside_the_other(path: Path) -> MappedWeights:
        both.wait()
        raise NotADirectoryError(20, "Not a directory")

    monkeypatch.setattr(weight_cache, "_mapped", fails_beside_the_other)
    kept = cache(tmp_path, path)
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(lambda name: kept.packer(name, (), lambda packer: None), "ab")] == [None, None]

    assert len(caplog.messages) == 1


def test_a_full_disk_leaves_nothing_behind(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fill(packer: Packer) -> None:
        packer.values(lambda: torch.ones(5000))
        raise OSError(28, "No space left on device")

    assert cache(tmp_path, path).packer("it", (), fill) is None
    assert files(tmp_path) == {}
    assert "No space left on device" in caplog.text


def keep(kept: WeightCache, folder: Path, name: str, at_s: float) -> object:
    """A part of 4000 bytes and some in `folder`, last used at `at_s`; what maps it."""
    found = kept.packer(name, (), lambda packer: packer.values(lambda: torch.ones(1000)))
    assert found is not None
    (file,) = folder.rglob(f"{name}-*")
    os.utime(file, (at_s, at_s))
    return found


def test_what_was_not_used_for_the_longest_makes_room_but_not_what_is_in_use_or_of_this_checkpoint(
    path: Path, tmp_path: Path
) -> None:
    other, folder = tmp_path / "other", tmp_path / "cache"
    shutil.copytree(path, other)
    rewrite(other, lambda name, values: values * 2)
    theirs, ours = cache(folder, other), cache(folder, path, max_bytes=16_000)
    in_use = keep(theirs, folder, "first", 1)
    for at_s, name in enumerate(("second", "third", "fourth"), 2):
        keep(theirs, folder, name, at_s)
    keep(ours, folder, "own", 0)
    (first,) = folder.rglob("first-*")
    for name, age_s in (("abandoned", 7200), ("written", 10)):
        part = first.with_name(f"{name}-0.part")
        part.write_bytes(b"")
        os.utime(part, (time.time() - age_s,) * 2)

    ours.trim()

    assert {file.name.split("-")[0] for file in files(folder)} == {"own", "first", "fourth", "written"}
    assert in_use is not None


TEXT = SamplingParams(temperature=0.8, seed=3, max_tokens=24, ignore_eos=True, speculation=3, drafter="mtp")
PROMPTS = ["def parse(text):\n    ", "The kernel"]


def tokens(llm: LLM) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, TEXT)]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scout with another MTP module."""
    folder = tmp_path_factory.mktemp("noisy") / "scout"
    shutil.copytree(resolve_model("scout"), folder)
    rewrite(folder, lambda name, values: values * 1.5 if name == "model.layers.12.eh_proj.weight" else values)
    return folder


def test_a_module_is_swapped_over_mapped_weights_and_no_file_is_written(noisy: Path, tmp_path: Path) -> None:
    with LLM("scout", weight_cache_dir=str(tmp_path), kv_cache_memory_bytes=KV_CACHE) as llm:
        before, first = tokens(llm), contents(tmp_path)
        llm.swap_drafter(str(noisy))
        swapped, second = tokens(llm), contents(tmp_path)
        llm.swap_drafter("scout")
        after = tokens(llm)

    assert before == swapped == after
    assert second.items() > first.items()
    assert {file.name.split("-")[0] for file in second.keys() - first.keys()} >= {"layer", "experts", "module"}
    assert contents(tmp_path) == second


def test_data_parallel_ranks_say_what_one_process_says_without_a_cache(tmp_path: Path) -> None:
    with LLM("scout", kv_cache_memory_bytes=KV_CACHE) as llm:
        wanted = tokens(llm)

    with LLM("scout", data_parallel_size=2, weight_cache_dir=str(tmp_path), kv_cache_memory_bytes=KV_CACHE) as llm:
        got = tokens(llm)

    assert got == wanted
    layers = [file.name.rsplit("-", 1)[0] for file in files(tmp_path) if file.name.startswith("layer")]
    assert sorted(layers) == sorted(set(layers)), "both ranks have the same files"
    assert len(layers) == 13


def test_torchs_path_says_that_it_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LLM("scout", kernels="torch", weight_cache_dir=str(tmp_path), kv_cache_memory_bytes=KV_CACHE):
        pass

    assert any("weight_cache_dir is not used by the PyTorch implementation" in message for message in caplog.messages)
    assert files(tmp_path) == {}


def test_who_asks_at_once_waits_for_one_that_packs_and_not_for_those_that_have_it_mapped(
    path: Path, tmp_path: Path
) -> None:
    """Threads do as processes: every opening of a file has a lock of its own."""
    fills, all_ask, mapped = itertools.count(), threading.Barrier(4), []

    def fill(packer: Packer) -> None:
        next(fills)
        time.sleep(0.2)  # the others wait by now
        packer.values(lambda: torch.ones(1000))

    def ask() -> None:
        own = cache(tmp_path, path)
        all_ask.wait()
        mapped.append(own.packer("it", (), fill))

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)

    assert len(mapped) == 4
    assert None not in mapped
    assert next(fills) == 1
    assert [file.suffix for file in files(tmp_path)] == [".packed"]
