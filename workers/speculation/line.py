"""A sum of non-negative parts, each in proportion to something known: least squares online, fading with age. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CLIP = 2.0  # an observation counts as at most this many times the estimate, and at least its inverse
_EVERY = 32  # observations between two solutions
_AT_ONCE = 16  # of the first observations each is taken in as it comes
_PRIOR = 0.01  # of a coefficient's own weight, the pull towards the first guess
_SWEEPS = 4  # of the coefficients in each solution


class Line:
    """Seconds = coefficients . features, none of them below 0. Errors count in proportion to the seconds."""

    def __init__(self, first_shape: Sequence[float], *, memory: float) -> None:
        """`first_shape`: the coefficients, but for their scale, before anything was seen."""
        self._shape = list(first_shape)
        self._keep = 1.0 - 1.0 / memory
        self._products: Floats = np.zeros((len(self._shape), len(self._shape)))
        self._targets: Floats = np.zeros(len(self._shape))
        self._waiting: list[Sequence[float]] = []
        self._waiting_s: list[float] = []
        self.seen = 0
        self.coefficients = list(first_shape)

    def seconds(self, features: Sequence[float]) -> float:
        return sum([c * f for c, f in zip(self.coefficients, features, strict=True)])

    def observe(self, features: Sequence[float], seconds: float) -> None:
        if not self.seen:
            scale = seconds / max(self.seconds(features), 1e-12)
            self._shape = self.coefficients = [scale * c for c in self.coefficients]
        self.seen += 1
        self._waiting.append(features)
        self._waiting_s.append(seconds)
        if self.seen <= _AT_ONCE or len(self._waiting) >= _EVERY:
            self._take_in(np.array(self._waiting), np.array(self._waiting_s))
            self._waiting, self._waiting_s = [], []

    def _take_in(self, features: Floats, seconds: Floats) -> None:
        """`features` [n, d], `seconds` [n]."""
        expected = np.maximum(features @ np.array(self.coefficients), 1e-9)
        ratios = seconds / expected
        if self.seen > _AT_ONCE:
            ratios = np.clip(ratios, 1.0 / _CLIP, _CLIP)
        relative = features / expected[:, None]
        keep = self._keep ** len(seconds)
        self._products = keep * self._products + relative.T @ relative
        self._targets = keep * self._targets + relative.T @ ratios
        self._solve()

    def _solve(self) -> None:
        """Coordinate descent from where it stands."""
        products, targets = self._products.tolist(), self._targets.tolist()
        found, places = self.coefficients.copy(), range(len(self._shape))
        for _ in range(_SWEEPS):
            for i in places:
                row = products[i]
                own = row[i] * (1.0 + _PRIOR)
                if own > 0:
                    others = sum([row[k] * found[k] for k in places]) - row[i] * found[i]
                    found[i] = max(0.0, (targets[i] + row[i] * _PRIOR * self._shape[i] - others) / own)
        self.coefficients = found
