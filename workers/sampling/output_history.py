"""A sequence's output so far, for rules that depend on it. Does not distinguish accepted tokens from drafts."""

from collections.abc import Sequence

import numpy as np

from outrider.workers.types.requests.sampling_params import MAX_DRAFT_TOKENS
from outrider.workers.types.rounds.round import IntArray

_ROOM = 64


class OutputHistory:
    """Tokens by place in the output. A draft stays at its place until another token is written there."""

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self._tokens = np.zeros(_ROOM, dtype=np.int64)
        self.address = self._tokens.ctypes.data
        self.write(0, token_ids)

    def write(self, place: int, token_ids: Sequence[int] | IntArray) -> None:
        """Writes the tokens at `place` and after, and reserves memory for a round's drafts after them."""
        end = place + len(token_ids)
        if end + MAX_DRAFT_TOKENS > len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros(end + _ROOM, dtype=np.int64)])
            self.address = self._tokens.ctypes.data
        self._tokens[place:end] = token_ids

    def before(self, place: int) -> IntArray:
        """A view of the output tokens before `place`. Later writes may change it."""
        return self._tokens[:place]
