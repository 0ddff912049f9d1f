"""The script that brings weights from an object store, with a directory as the store and a small rclone in front."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from helm.rendering import CHART

SCRIPT = CHART / "files" / "fetch-weights.sh"
FILES = {"config.json": b"{}", "tokenizer.json": b"{...}", "a.safetensors": b"a" * 4096, "b.safetensors": b"b" * 4096}
RCLONE = """#!/bin/bash
# `rclone copy store:PATH TARGET [--exclude GLOB]...` and `rclone check`, of a directory; $FAIL_AFTER breaks off.
echo "$@" >> "$CALLS"
verb=$1 source=${2#store:} target=$3
shift 3
excluded=()
while [ $# -gt 0 ]; do [ "$1" = --exclude ] && { excluded+=("$2"); shift; }; shift; done
copied=0
for file in "$source"/*; do
  name=$(basename "$file")
  for glob in "${excluded[@]}"; do [[ $name == $glob ]] && continue 2; done
  cmp -s "$file" "$target/$name" && continue
  [ "$verb" = check ] && exit 1
  [ "$copied" = "${FAIL_AFTER:-}" ] && exit 5
  cp "$file" "$target/$name"
  copied=$((copied + 1))
done
"""


class Store:
    """A bucket, a target and the commands between."""

    def __init__(self, folder: Path) -> None:
        self.bucket, self.target, tools = folder / "bucket", folder / "target", folder / "tools"
        for one in (self.bucket, tools):
            one.mkdir()
        for name, content in FILES.items():
            (self.bucket / name).write_bytes(content)
        sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in FILES.items()]
        (self.bucket / "SHA256SUMS").write_text("".join(sums))
        (tools / "rclone").write_text(RCLONE)
        (tools / "rclone").chmod(0o755)
        self.calls = folder / "calls"
        self._environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(self.calls)}

    def fetch(self, *, manifest: str = "SHA256SUMS", part: str = "whole", **environment: str) -> int:
        command = ["sh", str(SCRIPT), f"store:{self.bucket}", str(self.target), manifest, "2", part]
        return subprocess.run(command, env=self._environment | environment, capture_output=True, timeout=30).returncode

    @property
    def marked(self) -> bool:
        return (self.target / ".outrider-complete").exists()

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.target.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_checkpoint_is_fetched_whole_checked_and_marked_with_its_source(store: Store) -> None:
    assert store.fetch() == 0

    assert store.names == {*FILES, "SHA256SUMS"}
    assert (store.target / ".outrider-complete").read_text() == f"store:{store.bucket}"


def test_what_is_complete_is_not_fetched_again(store: Store) -> None:
    store.fetch()
    calls = store.calls.read_text()

    assert store.fetch() == 0
    assert store.calls.read_text() == calls


def test_an_interrupted_fetch_leaves_no_mark_and_goes_on_with_what_is_missing(store: Store) -> None:
    assert store.fetch(FAIL_AFTER="2") != 0
    assert not store.marked
    assert len(store.names) == 2

    assert store.fetch(FAIL_AFTER="3") == 0, "two files were there, and three were missing"
    assert store.marked


@pytest.mark.parametrize("manifest", ["SHA256SUMS", ""])
def test_a_file_that_is_damaged_on_the_way_is_never_marked_complete(store: Store, manifest: str) -> None:
    damaged = (
        (store.bucket / "SHA256SUMS").read_text().replace(hashlib.sha256(FILES["b.safetensors"]).hexdigest(), "0" * 64)
    )
    (store.bucket / "SHA256SUMS").write_text(damaged)

    status = store.fetch(manifest=manifest)

    assert (status == 0) == (manifest == "")  # without a manifest the store's own comparison decides
    assert store.marked == (manifest == "")


def test_the_small_part_leaves_the_weights_out_and_checks_the_rest(store: Store) -> None:
    assert store.fetch(part="small") == 0
    assert store.names == {"config.json", "tokenizer.json", "SHA256SUMS"}

    (store.bucket / "config.json").write_text("changed")
    (store.target / ".outrider-complete").unlink()
    assert store.fetch(part="small") != 0


def test_another_source_replaces_the_mark(store: Store) -> None:
    store.fetch()
    (store.target / ".outrider-complete").write_text("store:/elsewhere")

    assert store.fetch() == 0
    assert (store.target / ".outrider-complete").read_text() == f"store:{store.bucket}"
