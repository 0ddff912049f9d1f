"""Turns one output's tokens into text as they come."""

import codecs

from outrider.workers.text.tokenizer import Tokenizer


class Detokenizer:
    """Never gives half a character: bytes that may still become one are held back until the next token decides.

    All that `add` and `flush` give, joined, is what decoding the tokens at once gives.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """The text that this token completes."""
        if self._skip_special_tokens and self._tokenizer.is_special(token_id):
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished."""
        return self._utf8.decode(b"", final=True)
