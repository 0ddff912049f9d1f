"""Other verification rules: plain rejection sampling and block verification. For experiments, never the default.

With both, the text depends on the drafts, but still has the target's distribution; they accept a little more than
coupled sampling. Pure arithmetic on distributions: rows of probabilities in float64, `target` [drafts + 1, vocab] and
`draft` [drafts, vocab], each row conditional on the drafts before it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REJECTION, BLOCK = "rejection", "block"


def stop_probabilities(rule: str, target: Floats, draft: Floats, tokens: Sequence[int]) -> Floats:
    """Probability that exactly the first n drafts are accepted, for n = 0 .. drafts: [drafts + 1], sums to 1."""
    return _STOPS[rule](target, draft, tokens)


def last_distribution(rule: str, target: Floats, draft: Floats, tokens: Sequence[int], accepted: int) -> Floats:
    """The distribution of the token after the first `accepted` drafts, [vocab]; after all of them, the target's own."""
    if accepted == len(tokens):
        own: Floats = target[accepted]
        return own
    scale = _weights(target, draft, tokens)[accepted] if rule == BLOCK else 1.0
    left = np.maximum(scale * target[accepted] - draft[accepted], 0.0)
    total = left.sum()
    last: Floats = left / total if total > 0.0 else target[accepted]  # 0: both are equal, so nothing is rejected
    return last


def _rejection(target: Floats, draft: Floats, tokens: Sequence[int]) -> Floats:
    """Accepts each draft separately, with probability min(1, p / q) (arXiv 2211.17192, 2302.01318)."""
    survival = np.cumprod([1.0, *np.minimum(_ratios(target, draft, tokens), 1.0)])
    stops: Floats = -np.diff(np.append(survival, 0.0))
    return stops


def _block(target: Floats, draft: Floats, tokens: Sequence[int]) -> Floats:
    """Accepts the longest prefix that passes (block verification, arXiv 2403.10444, algorithm 2)."""
    weights = _weights(target, draft, tokens)
    passes = np.ones(len(tokens) + 1)
    for n in range(1, len(tokens)):
        left = np.maximum(weights[n] * target[n] - draft[n], 0.0).sum()
        passes[n] = left / (left + 1.0 - weights[n]) if left + 1.0 - weights[n] > 0.0 else 1.0
    passes[-1] = weights[-1]
    fails_beyond = np.append(np.cumprod((1.0 - passes[1:])[::-1])[::-1], 1.0)
    passes[0] = 1.0
    stops: Floats = passes * fails_beyond
    return stops


def _weights(target: Floats, draft: Floats, tokens: Sequence[int]) -> Floats:
    """The paper's p_n: ratio of the target's to the drafter's probability of the first n drafts, clipped to 1."""
    weights = [1.0]
    for ratio in _ratios(target, draft, tokens):
        weights.append(min(weights[-1] * ratio, 1.0))
    return np.array(weights)


def _ratios(target: Floats, draft: Floats, tokens: Sequence[int]) -> list[float]:
    return [float(p[token] / q[token]) for p, q, token in zip(target, draft, tokens, strict=False)]


_STOPS: dict[str, Callable[[Floats, Floats, Sequence[int]], Floats]] = {REJECTION: _rejection, BLOCK: _block}
