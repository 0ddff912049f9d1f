"""Chooses the draft head's tokens: `python -m outrider.workers.training.draft_head --data DIR --checkpoint DIR`.

Counts the token streams of dataset.py, weighted by kind, and keeps the most frequent tokens until they cover
`--coverage` of the text. Writes draft_head.safetensors beside the checkpoint. If the file exists, the engine only
drafts those tokens; its output does not change.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from outrider.workers.model.draft_head import DRAFT_HEAD_FILE
from outrider.workers.training.dataset import KIND_SHARES
from outrider.workers.types.model.model_config import ModelConfig

Frequencies = npt.NDArray[np.float64]


def frequencies(folder: Path, vocab_size: int, shares: Mapping[str, float] = KIND_SHARES) -> Frequencies:
    """The frequency of each token in the training text, [vocab]; sums to 1."""
    total = np.zeros(vocab_size)
    for kind, share in shares.items():
        counts = np.bincount(np.load(folder / f"train.{kind}.npy", mmap_mode="r"), minlength=vocab_size)
        total += share * counts / counts.sum()
    return np.asarray(total / total.sum())


def most_frequent(frequencies: Frequencies, coverage: float, always: tuple[int, ...] = ()) -> npt.NDArray[np.int32]:
    """The fewest tokens that cover `coverage` of the text, and those of `always`; ascending."""
    order = np.argsort(-frequencies, kind="stable")
    kept = int(np.searchsorted(np.cumsum(frequencies[order]), coverage)) + 1
    return np.unique(np.concatenate([order[:kept], np.asarray(always, dtype=np.int64)])).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the tokens of the drafting head.")
    parser.add_argument("--data", type=Path, required=True, help="where dataset.py wrote the token streams")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--coverage", type=float, default=0.98, help="share of the text, below 1")
    args = parser.parse_args()
    if not 0 < args.coverage < 1:
        parser.error(f"--coverage must be above 0 and below 1, got {args.coverage}")
    config = ModelConfig.load(args.checkpoint)
    shares = frequencies(args.data, config.vocab_size)
    ids = most_frequent(shares, args.coverage, config.eos_token_ids)
    save_file({"token_ids": ids}, args.checkpoint / DRAFT_HEAD_FILE)
    print(f"{len(ids)} of {config.vocab_size} tokens are {shares[ids].sum():.2%} of the text")


if __name__ == "__main__":
    main()
