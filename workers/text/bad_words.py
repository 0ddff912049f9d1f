"""Translates bad words to token ids. Done before the engine, which has no tokenizer."""

from dataclasses import replace

from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.requests.sampling_params import SamplingParams


def with_bad_words(params: SamplingParams, tokenizer: Tokenizer | None) -> SamplingParams:
    """`params` with its bad words as tokens. Raises ValueError if a word has too many tokens."""
    if not params.bad_words or tokenizer is None:
        return params
    spelled = [ids for word in params.bad_words for ids in _spellings(word, tokenizer)]
    return replace(params, bad_words_token_ids=[*(params.bad_words_token_ids or ()), *spelled])


def _spellings(word: str, tokenizer: Tokenizer) -> list[list[int]]:
    """As in vLLM: the word, and also the word after a space if that has as many tokens but another first one."""
    bare, spaced = (tokenizer.encode_part(prefix + word.lstrip()) for prefix in ("", " "))
    return [bare, spaced] if len(spaced) == len(bare) and spaced[0] != bare[0] else [bare]
