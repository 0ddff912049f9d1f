"""Bad words as the tokens that spell them. What a word's tokens are is the tokenizer's to say, so the edge asks it."""

from dataclasses import replace

from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.sampling_params import SamplingParams


def with_bad_words(params: SamplingParams, tokenizer: Tokenizer | None) -> SamplingParams:
    """`params` with its bad words as tokens. ValueError if one has too many."""
    if not params.bad_words or tokenizer is None:
        return params
    spelled = [ids for word in params.bad_words for ids in _spellings(word, tokenizer)]
    return replace(params, bad_words_token_ids=[*(params.bad_words_token_ids or ()), *spelled])


def _spellings(word: str, tokenizer: Tokenizer) -> list[list[int]]:
    """As vLLM has it: the word, and the word after a space where that is another first token of as many."""
    bare, spaced = (tokenizer.encode_part(prefix + word.lstrip()) for prefix in ("", " "))
    return [bare, spaced] if len(spaced) == len(bare) and spaced[0] != bare[0] else [bare]
