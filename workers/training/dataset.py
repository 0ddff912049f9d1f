"""Token streams for training: `python -m outrider.workers.training.dataset --corpus DIR --tokenizer DIR --out DIR`.

Every document becomes begin-of-sentence, its tokens, end-of-sentence, in one flat uint16 file for each split and kind.
Draws random windows from them; knows nothing of models.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from outrider.workers.training.tokenizer import ASSISTANT, BEGIN_ID, END, END_ID, USER

KIND_SHARES = {"code": 0.50, "prose": 0.42, "chat": 0.08}
Tokens = npt.NDArray[np.uint16]


def document_text(document: dict[str, str]) -> str:
    """A document as model input; conversations are formatted by the chat template."""
    if document["kind"] != "chat":
        return document["text"]
    marks = {"user": (USER, ""), "assistant": (ASSISTANT, END)}
    parts = [marks[m["role"]][0] + m["content"] + marks[m["role"]][1] for m in json.loads(document["text"])]
    return "".join(parts).removesuffix(END)


def encode_documents(path: Path, tokenizer: Tokenizer, kind: str) -> Tokens:
    """All documents of one kind, one after the other, each between begin- and end-of-sentence."""
    stream: list[npt.NDArray[np.uint16]] = []
    for batch in _batches(path, kind):
        encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
        stream += [np.array([BEGIN_ID, *encoding.ids, END_ID], dtype=np.uint16) for encoding in encodings]
    return np.concatenate(stream) if stream else np.zeros(0, dtype=np.uint16)


def _batches(path: Path, kind: str, size: int = 64) -> Iterator[list[str]]:
    batch: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            if document["kind"] == kind:
                batch.append(document_text(document))
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


class Windows:
    """Draws batches of windows from the token streams: batch `step` depends on `seed` and `step` alone."""

    def __init__(self, folder: Path, split: str, seed: int, shares: Mapping[str, float] = KIND_SHARES) -> None:
        self._streams = {kind: np.load(folder / f"{split}.{kind}.npy", mmap_mode="r") for kind in shares}
        self._shares = dict(shares)
        self._seed = seed

    def batch(self, step: int, rows: int, length: int) -> torch.Tensor:
        """Tokens of `rows` windows, int64 [rows, length]. Half of the windows start with begin-of-sentence."""
        random = np.random.default_rng((self._seed, step))
        kinds = random.choice(list(self._shares), size=rows, p=list(self._shares.values()))
        windows = np.stack([self._window(random, str(kind), length) for kind in kinds]).astype(np.int64)
        windows[: rows // 2, 0] = BEGIN_ID
        return torch.from_numpy(windows)

    def _window(self, random: np.random.Generator, kind: str, length: int) -> Tokens:
        stream = self._streams[kind]
        start = int(random.integers(0, len(stream) - length))
        return np.asarray(stream[start : start + length])


def main() -> None:
    """Encodes the corpus below --out."""
    parser = argparse.ArgumentParser(description="Encode the corpus of the demo model.")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json"))
    for split in ("train", "heldout"):
        for kind in KIND_SHARES:
            stream = encode_documents(arguments.corpus / f"{split}.jsonl", tokenizer, kind)
            np.save(arguments.out / f"{split}.{kind}.npy", stream)
            print(split, kind, f"{len(stream):,} tokens")


if __name__ == "__main__":
    main()
