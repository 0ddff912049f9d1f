"""Turns one output's tokens into text incrementally."""

import codecs

from outrider.workers.text.tokenizer import Tokenizer


class Detokenizer:
    """Returns only complete characters: bytes of an incomplete one are held back until the next token.

    The joined results of `add` and `flush` equal the text of decoding all tokens at once.
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
        """The rest of the text: U+FFFD for an incomplete character."""
        return self._utf8.decode(b"", final=True)
