"""Which tokens a drafting head knows: read from beside the checkpoint, or refused with the file's name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_config, write_checkpoint
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from outrider.workers.model.draft_head import DRAFT_HEAD_FILE, draft_head_ids
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig

VOCAB = 97


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, random_config(4, vocab_size=VOCAB))
    return tmp_path


def read(path: Path) -> NDArray[np.int32] | None:
    return draft_head_ids(path, ModelConfig.load(path))


def written(path: Path, ids: NDArray[np.generic]) -> Path:
    save_file({"token_ids": ids}, path / DRAFT_HEAD_FILE)
    return path


def test_a_checkpoint_without_one_has_a_whole_head(path: Path) -> None:
    assert read(path) is None


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("ids", [[0], [VOCAB - 1], [0, 1, 5, VOCAB - 1], list(range(VOCAB))])
def test_ascending_ids_of_any_integer_type_are_read(path: Path, ids: list[int], kind: type[np.generic]) -> None:
    found = read(written(path, np.array(ids, dtype=kind)))

    assert found is not None
    assert found.tolist() == ids
    assert found.dtype == np.int32
    assert found.flags.c_contiguous


@pytest.mark.parametrize(
    "ids",
    [[], [-1, 4], [0, VOCAB], [3, 3], [5, 4], [1, 9, 2, 50], [2**32 + 5], [1, 2**32 + 5, 7]],
    ids=["none", "below", "above", "twice", "falling", "mixed", "wrapped", "wrapped between"],
)
def test_ids_that_are_not_ascending_tokens_of_the_vocabulary_are_refused(path: Path, ids: list[int]) -> None:
    written(path, np.array(ids, dtype=np.int64))

    with pytest.raises(CheckpointError, match=rf"{DRAFT_HEAD_FILE} must hold ascending token ids .*{VOCAB}"):
        read(path)


@pytest.mark.parametrize(
    "ids",
    [np.array([[1, 2], [3, 4]]), np.array(3), np.array([1.5, 2.5])],
    ids=["of two dimensions", "of none", "no integers"],
)
def test_a_tensor_that_is_no_list_of_integers_is_refused(path: Path, ids: NDArray[np.generic]) -> None:
    written(path, ids)

    with pytest.raises(CheckpointError, match=DRAFT_HEAD_FILE):
        read(path)


def test_a_tensor_in_bfloat16_is_refused(path: Path) -> None:
    save_torch({"token_ids": torch.tensor([1.0, 2.0]).bfloat16()}, path / DRAFT_HEAD_FILE)

    with pytest.raises(CheckpointError, match=DRAFT_HEAD_FILE):
        read(path)


@pytest.mark.parametrize("data", [b"", b"x", b"\xff" * 8, b"\x10\0\0\0\0\0\0\0{not json}", bytes(100)])
def test_a_damaged_file_is_refused_in_one_line(path: Path, data: bytes) -> None:
    (path / DRAFT_HEAD_FILE).write_bytes(data)

    with pytest.raises(CheckpointError, match=rf"{DRAFT_HEAD_FILE} is damaged") as caught:
        read(path)

    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(path: Path) -> None:
    file = written(path, np.arange(50)) / DRAFT_HEAD_FILE
    file.write_bytes(file.read_bytes()[:-9])

    with pytest.raises(CheckpointError, match=rf"{DRAFT_HEAD_FILE} is damaged"):
        read(path)


def test_a_file_without_the_tensor_is_refused(path: Path) -> None:
    save_file({"ids": np.arange(3)}, path / DRAFT_HEAD_FILE)

    with pytest.raises(CheckpointError, match=rf"{DRAFT_HEAD_FILE} is damaged: .*token_ids"):
        read(path)
