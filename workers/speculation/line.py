"""A sum of non-negative parts, each in proportion to something known: least squares online, fading with age. Pure."""

from collections.abc import Sequence
from operator import mul

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CLIP = 2.0  # an observation counts as at most this many times the estimate, and at least its inverse
_EVERY = 32  # observations between two solutions
_AT_ONCE = 16  # of the first observations each is taken in as it comes
_PRIOR = 0.01  # of a coefficient's own weight, the pull towards the first guess
_TRUST = 4.0  # observations that the first guess counts as at first
_UNSEEN = 1e-9  # of the largest weight, the same pull on a coefficient of which nothing was seen


class Line:
    """Seconds = coefficients . features, none of them below 0. Errors count in proportion to the seconds."""

    def __init__(self, first_shape: Sequence[float], *, memory: float) -> None:
        """`first_shape`: the coefficients, but for their scale, before anything was seen."""
        self._shape: Floats = np.array(first_shape, dtype=np.float64)
        self._keep = 1.0 - 1.0 / memory
        self._products: Floats = np.zeros((len(self._shape), len(self._shape)))
        self._targets: Floats = np.zeros(len(self._shape))
        self._waiting: list[Sequence[float]] = []
        self._waiting_s: list[float] = []
        self._news = False  # among these
        self.seen = 0
        self.coefficients = list(first_shape)

    def seconds(self, features: Sequence[float]) -> float:
        seconds: float = sum(map(mul, self.coefficients, features))
        return seconds

    def observe(self, features: Sequence[float], seconds: float, *, news: bool = False) -> None:
        """`news`: of a kind that was hardly seen yet, so that it counts at once and whole."""
        if not self.seen:
            scale = seconds / max(self.seconds(features), 1e-12)
            self._shape = scale * self._shape
            self.coefficients = self._shape.tolist()
        self.seen += 1
        self._waiting.append(features)
        self._waiting_s.append(seconds)
        self._news = self._news or news or self.seen <= _AT_ONCE

    @property
    def due(self) -> bool:
        """Whether there is enough to solve for: `solve` says when."""
        return self._news or len(self._waiting) >= _EVERY

    def solve(self) -> None:
        """Takes in what was observed. The coefficients are as they were until then."""
        if self._waiting:
            self._take_in(np.array(self._waiting), np.array(self._waiting_s), clip=not self._news)
            self._waiting, self._waiting_s, self._news = [], [], False

    def _take_in(self, features: Floats, seconds: Floats, *, clip: bool) -> None:
        """`features` [n, d], `seconds` [n]."""
        expected = np.maximum(features @ np.array(self.coefficients), 1e-9)
        ratios = seconds / expected
        if clip:
            ratios = np.clip(ratios, 1.0 / _CLIP, _CLIP)
        else:  # an error in proportion to what was seen: a disturbed round counts for little
            expected, ratios = np.maximum(seconds, 1e-9), np.ones_like(seconds)
        relative = features / expected[:, None]
        keep = self._keep ** len(seconds)
        self._products = keep * self._products + relative.T @ relative
        self._targets = keep * self._targets + relative.T @ ratios
        self._solve()

    def _solve(self) -> None:
        """Least squares; a part that would come out below 0 is left out, and the others are solved for again."""
        own = np.diagonal(self._products)
        pull = max(_PRIOR, _TRUST / self.seen) * own + _UNSEEN * own.max()
        products, targets = self._products + np.diag(pull), self._targets + pull * self._shape
        free = np.arange(len(targets))
        found = np.zeros(len(targets))
        while len(free):
            solved = np.linalg.solve(products[np.ix_(free, free)], targets[free])
            if solved.min() >= 0.0:
                found[free] = solved
                break
            free = free[solved > 0.0]
        self.coefficients = found.tolist()
