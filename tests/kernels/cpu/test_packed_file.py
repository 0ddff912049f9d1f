"""Packed weights in a file: what is mapped is what would lie in private memory, and nothing that is not."""

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider.kernels.cpu import library
from outrider.kernels.cpu.context import Context
from outrider.kernels.cpu.library import BFLOAT16, FLOAT32, INT8, ROUNDED
from outrider.kernels.cpu.packed_file import DamagedFileError, FileWriter, MappedWeights
from outrider.kernels.cpu.packing import Packer, PrivateWeights, gates_beside_ups

GATE_UP, VALUES, DOWN = torch.randn(40, 130), torch.randn(7, 3), torch.randn(33, 20)


def never() -> Tensor:
    raise AssertionError("what is there is not made anew")


def fill(packer: Packer, kind: int) -> None:
    packer.linear(lambda: GATE_UP, kind, gates_beside_ups(20))
    packer.values(lambda: VALUES)
    packer.linear(lambda: DOWN, kind)


def write(path: Path, kind: int) -> bytes:
    with path.open("w+b") as file:
        writer = FileWriter(file)
        fill(writer, kind)
        writer.finish()
    return path.read_bytes()


def mapped(path: Path) -> MappedWeights:
    with path.open("rb") as file:
        return MappedWeights(file)


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, INT8, ROUNDED])
def test_products_over_mapped_weights_have_the_bits_of_those_over_private_ones(kind: int, tmp_path: Path) -> None:
    write(tmp_path / "weights", kind)
    context, private, shared = Context(1), PrivateWeights(), mapped(tmp_path / "weights")
    x, y = torch.randn(5, 130), torch.randn(5, 20)

    gate_up = shared.linear(never, kind, gates_beside_ups(20))
    values = torch.tensor((ctypes.c_float * VALUES.numel()).from_address(shared.values(never)))
    down = shared.linear(never, kind)

    own = private.linear(lambda: GATE_UP, kind, gates_beside_ups(20)), private.linear(lambda: DOWN, kind)
    assert torch.equal(context.linear(gate_up, x), context.linear(own[0], x))
    assert torch.equal(context.linear(down, y), context.linear(own[1], y))
    assert torch.equal(values.view(7, 3), VALUES)
    assert all(address % 64 == 0 for address in (gate_up.panels, down.panels, gate_up.scales or 0))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("packed") / "weights"
    return path, write(path, INT8)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_is_found_or_is_filling_that_nobody_reads(good: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = good
    place, change = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])

    try:
        mapped(path)
    except DamagedFileError:
        return
    assert content[place] == 0
    assert place in filling(content)


def filling(content: bytes) -> set[int]:
    """Bytes of the file that belong to no weight: what an intact one's records leave out."""
    head = np.frombuffer(content[8:32], dtype="<u8")
    first, size = int(head[0]), int(head[1])
    pieces = [piece for record in json.loads(content[first : first + size]) for piece in record["pieces"]]
    used = [(0, 32), (first, size), *(piece[:2] for piece in pieces)]
    return set(range(len(content))) - {byte for first, size in used for byte in range(first, first + size)}


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_file_that_is_cut_off_anywhere_is_found(good: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = good
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])

    with pytest.raises(DamagedFileError):
        mapped(path)


def test_a_file_that_was_not_finished_is_found(tmp_path: Path) -> None:
    with (tmp_path / "weights").open("w+b") as file:
        fill(FileWriter(file), FLOAT32)

    with pytest.raises(DamagedFileError, match="does not begin as packed weights do"):
        mapped(tmp_path / "weights")


def checksum(values: bytes) -> int:
    held = np.frombuffer(values, dtype=np.uint8)
    return int(library.load().outrider_checksum(held.ctypes.data, len(held)))


@given(st.binary(min_size=1, max_size=300), st.data())
def test_checksums_tell_apart_words_that_changed_or_changed_places(values: bytes, data: st.DataObject) -> None:
    padded = values + bytes(-len(values) % 8)
    words = [padded[at : at + 8] for at in range(0, len(padded), 8)]
    one, other = (data.draw(st.integers(0, len(words) - 1)) for _ in range(2))
    swapped = list(words)
    swapped[one], swapped[other] = words[other], words[one]
    flipped = bytes([padded[0] ^ 0x80, *padded[1:]])

    assert (checksum(b"".join(swapped)) == checksum(padded)) == (words[one] == words[other])
    assert checksum(flipped) != checksum(padded)
    assert checksum(padded + bytes(1)) != checksum(padded)
