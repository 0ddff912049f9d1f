"""A sequence's output as its rules look back on it. Knows neither which tokens are certain nor what the rules are."""

from collections.abc import Sequence

import numpy as np

from outrider.workers.types.round import IntArray
from outrider.workers.types.sampling_params import MAX_DRAFT_TOKENS

_ROOM = 64


class Said:
    """Tokens by their place in the output. A draft stands at its place until another token is written there."""

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self._tokens = np.zeros(_ROOM, dtype=np.int64)
        self.address = self._tokens.ctypes.data
        self.write(0, token_ids)

    def write(self, place: int, token_ids: Sequence[int] | IntArray) -> None:
        """Puts the tokens at `place` and after. There is room for a round's drafts behind them."""
        end = place + len(token_ids)
        if end + MAX_DRAFT_TOKENS > len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros(end + _ROOM, dtype=np.int64)])
            self.address = self._tokens.ctypes.data
        self._tokens[place:end] = token_ids

    def before(self, place: int) -> IntArray:
        """The output before `place`: a view, which the next write may change."""
        return self._tokens[:place]
