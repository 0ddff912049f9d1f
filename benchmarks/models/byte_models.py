"""What knows less of a text than a language model: the few bytes before each byte, and compressors. Bits a byte."""

import gzip
import lzma
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def gzip_bits(text: bytes) -> float:
    """Of the text as one file."""
    return 8 * len(gzip.compress(text, 9)) / len(text)


def xz_bits(text: bytes) -> float:
    """Of the text as one file."""
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


class ByteNgrams:
    """Foretells a byte from up to four before it, as often as it followed them in `text` (Witten-Bell)."""

    def __init__(self, text: bytes, order: int = 5) -> None:
        """`order`: bytes of the longest n-gram, at most 8."""
        self._counts = [_Counts.of(_windows(text, length)) for length in range(1, order + 1)]

    def bits(self, text: bytes) -> float:
        """Of each byte that has the longest context before it, on average."""
        order = len(self._counts)
        places = len(text) - order + 1
        if places < 1:
            raise ValueError(f"a text of at least {order} bytes is needed, got {len(text)}")
        chance = np.full(places, 1 / 256)
        for length, counts in enumerate(self._counts, 1):
            chance = counts.mixed(_windows(text, length)[order - length :], chance)
        return float(-np.log2(chance).mean())


class _Counts(NamedTuple):
    """Of n-grams of one length, as words of their bytes, ascending; and of their contexts: all bytes but the last."""

    grams: Words  # [n]
    seen: NDArray[np.int64]  # [n]
    contexts: Words  # [c]
    totals: NDArray[np.int64]  # [c] grams that begin so
    kinds: NDArray[np.int64]  # [c] how many different ones

    @classmethod
    def of(cls, windows: Words) -> "_Counts":
        grams, seen = np.unique(windows, return_counts=True)
        contexts, first, kinds = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
        return cls(grams, seen, contexts, np.add.reduceat(seen, first), kinds)

    def mixed(self, windows: Words, shorter: NDArray[np.float64]) -> NDArray[np.float64]:
        """The chance of each window's last byte, where the shorter context gives it the chance `shorter`."""
        seen = _looked_up(self.grams, self.seen, windows)
        contexts = windows >> np.uint64(8)
        totals = _looked_up(self.contexts, self.totals, contexts)
        kinds = _looked_up(self.contexts, self.kinds, contexts)
        known = (seen + kinds * shorter) / np.maximum(totals + kinds, 1)
        return np.where(totals > 0, known, shorter)


def _looked_up(keys: Words, values: NDArray[np.int64], wanted: Words) -> NDArray[np.int64]:
    """The value of each wanted key, 0 where there is none."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def _windows(text: bytes, length: int) -> Words:
    """All runs of `length` bytes as words, the first byte the highest."""
    data = np.frombuffer(text, dtype=np.uint8)
    count = len(data) - length + 1
    words = np.zeros(max(count, 0), dtype=np.uint64)
    for place in range(length):
        words = words << np.uint64(8) | data[place : place + count]
    return words


def bits_of_nats(nats_per_token: float, tokens_per_byte: float) -> float:
    return nats_per_token * tokens_per_byte / math.log(2)
