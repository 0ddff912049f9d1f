"""How likely drafts are accepted, by position, each given those before it: counts that fade, with a prior."""

from collections.abc import Sequence

_CEILING = 0.98


class Acceptance:
    """Rates of one sequence, or of the whole engine, from what became of its drafts."""

    def __init__(self, positions: int, *, memory: float, prior_weight: float) -> None:
        """`memory`: observations until one has faded to 1/e; `prior_weight`: how many the prior is worth."""
        self._keep = 1.0 - 1.0 / memory
        self._prior_weight = prior_weight
        self._tried = [0.0] * positions
        self._accepted = [0.0] * positions

    def observe(self, drafts: int, accepted: int, finished: bool) -> None:
        """Counts one verification. Where the sequence `finished`, the draft after the accepted ones was not judged."""
        judged = min(drafts, accepted if finished else accepted + 1, len(self._tried))
        for position in range(judged):
            self._tried[position] = self._tried[position] * self._keep + 1.0
            self._accepted[position] = self._accepted[position] * self._keep + (position < accepted)

    def rates(self, prior: Sequence[float]) -> list[float]:
        """Probability that the draft at each position is accepted, given that those before it were.

        Where little was seen it is `prior`'s, shifted as the position before was found to differ from its own.
        """
        rates, shift = [], 1.0
        for expected, tried, accepted in zip(prior, self._tried, self._accepted, strict=True):
            shifted = min(expected * shift, _CEILING)
            rate = min((accepted + self._prior_weight * shifted) / (tried + self._prior_weight), _CEILING)
            rates.append(rate)
            shift = rate / expected
        return rates


def expected_tokens(rates: Sequence[float]) -> list[float]:
    """Tokens that a round is expected to emit at depth 0, 1, .. len(rates)."""
    tokens, reached = [1.0], 1.0
    for rate in rates:
        reached *= rate
        tokens.append(tokens[-1] + reached)
    return tokens
