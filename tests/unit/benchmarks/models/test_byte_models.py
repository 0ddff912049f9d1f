"""N-grams of bytes: their chances are a distribution, and follow what they were shown."""

import math

import numpy as np
import pytest

from benchmarks.models.byte_models import ByteNgrams, bits_of_nats, gzip_bits, xz_bits

SHOWN = b"abracadabra, said the magician; abracadabra, said the others. " * 3


def chance(text: bytes, order: int, context: bytes, byte: int) -> float:
    """The same, straight from the definition (Witten-Bell, down to equal chances for all bytes)."""
    if order == 0:
        return 1 / 256
    lower = chance(text, order - 1, context[1:], byte)
    grams = [text[i : i + order] for i in range(len(text) - order + 1)]
    following = [gram[-1] for gram in grams if gram[:-1] == context]
    kinds = len(set(following))
    return (following.count(byte) + kinds * lower) / (len(following) + kinds) if following else lower


def test_bits_are_those_of_the_definition() -> None:
    asked = b"abracadabra, said the quick brown fox"

    bits = [-math.log2(chance(SHOWN, 5, asked[i - 4 : i], asked[i])) for i in range(4, len(asked))]

    assert ByteNgrams(SHOWN).bits(asked) == pytest.approx(sum(bits) / len(bits))


def test_what_was_shown_costs_less_than_what_was_not() -> None:
    ngrams = ByteNgrams(SHOWN)
    noise = np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8).tobytes()

    assert ngrams.bits(SHOWN) < 1 < 7 < ngrams.bits(noise)


def test_a_text_shorter_than_an_n_gram_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 5 bytes is needed, got 3"):
        ByteNgrams(SHOWN).bits(b"abr")


def test_compressors_and_nats_give_bits_a_byte() -> None:
    assert gzip_bits(b"a" * 100_000) < 0.02
    assert xz_bits(b"a" * 100_000) < 0.02
    assert bits_of_nats(math.log(2), 0.25) == pytest.approx(0.25)
