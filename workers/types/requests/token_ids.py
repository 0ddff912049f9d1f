"""Checks of parameters with token ids: biases, allowed tokens, bad words. Torch-free, independent of the model."""

from collections.abc import Iterable, Mapping, Sequence

MAX_BIASES = 1024
MAX_BIAS = 100.0  # as in the OpenAI API and vLLM
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 64
MAX_ALLOWED = 2**20


def check_ids(name: str, ids: object, most: int = 2**20) -> None:
    """Raises ValueError unless `ids` is a sequence of at most `most` non-negative integers."""
    whole = isinstance(ids, Sequence) and all(type(token_id) is int and token_id >= 0 for token_id in ids)
    if isinstance(ids, str | bytes) or not whole:
        raise ValueError(f"{name} must be integers of at least 0, got {ids!r}")
    if isinstance(ids, Sequence) and len(ids) > most:
        raise ValueError(f"{name} must be at most {most}, got {len(ids)}")


def check_logit_bias(biases: object) -> None:
    if not isinstance(biases, Mapping):
        raise ValueError(f"logit_bias must be a mapping of token ids to numbers, got {biases!r}")
    check_ids("logit_bias keys", list(biases), MAX_BIASES)
    for token_id, bias in biases.items():
        number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not number or not -MAX_BIAS <= bias <= MAX_BIAS:  # also true of NaN
            raise ValueError(f"logit_bias[{token_id}] must be in [-{MAX_BIAS:g}, {MAX_BIAS:g}], got {bias!r}")


def check_allowed(ids: object) -> None:
    check_ids("allowed_token_ids", ids, MAX_ALLOWED)
    if not ids:
        raise ValueError("allowed_token_ids must not be empty: no token could be generated")


def check_bad_words(words: object) -> None:
    listed = list(words) if isinstance(words, Sequence) and not isinstance(words, str | bytes) else [None]
    if not all(isinstance(word, str) and word.strip() for word in listed):
        raise ValueError(f"bad_words must be strings, none of them empty, got {words!r}")
    if len(listed) > MAX_BAD_WORDS:
        raise ValueError(f"bad_words must be at most {MAX_BAD_WORDS}, got {len(listed)}")


def check_bad_words_token_ids(words: object) -> None:
    """Allows two lists per bad word, since each may be tokenized with and without a leading space."""
    if not isinstance(words, Sequence) or len(words) > 2 * MAX_BAD_WORDS:
        raise ValueError(f"bad_words_token_ids must be at most {2 * MAX_BAD_WORDS} lists of token ids, got {words!r}")
    for place, word in enumerate(words):
        check_ids(f"bad_words_token_ids[{place}]", word, MAX_BAD_WORD_TOKENS)
        if not word:
            raise ValueError(f"bad_words_token_ids[{place}] must not be empty")


def check_in_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"{name} must be in [0, {vocab_size - 1}], got {token_id}")
