"""Online regressions with exponential forgetting: least squares for seconds, logistic for probabilities. Pure."""

import math
from collections.abc import Sequence
from operator import mul

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_OUTLIER = 2.0  # observations are clipped to 1/2 .. 2 times their estimate
_EVERY = 32  # observations between two solutions, to save time; the first ones are each solved for
_PRIOR = 0.01  # pull towards the initial guess, as a share of a coefficient's own weight
_TRUST = 4.0  # weight of the initial guess in observations
_LONGEST_STEP = 1.0  # largest change of a weight in one step, since the first labels may be all equal by chance
_RIDGE = 0.1  # permanent pull towards the initial weights, equal to half a label


class LeastSquares:
    """Value = coefficients . features, with coefficients >= 0. Minimizes relative errors."""

    def __init__(self, first_guess: Sequence[float], *, memory: float) -> None:
        """`first_guess`: the coefficients up to a common factor. `memory`: observations."""
        self._guess: Floats = np.array(first_guess, dtype=np.float64)
        self._keep = 1.0 - 1.0 / memory
        self._products: Floats = np.zeros((len(self._guess), len(self._guess)))
        self._targets: Floats = np.zeros(len(self._guess))
        self._features: list[Sequence[float]] = []  # of observations that are not fitted yet
        self._values: list[float] = []
        self.seen = self.solutions = 0
        self.coefficients = list(first_guess)

    def value(self, features: Sequence[float]) -> float:
        total: float = sum(map(mul, self.coefficients, features))
        return total

    def observe(self, features: Sequence[float], value: float, *, at_once: bool = False) -> None:
        """Adds an observation. The coefficients are updated after several of them, or `at_once`."""
        if not self.seen:
            self._guess *= value / max(self.value(features), 1e-12)
            self.coefficients = self._guess.tolist()
        self.seen += 1
        self._features.append(features)
        self._values.append(value)
        if at_once or self.seen <= _EVERY // 2 or len(self._values) >= _EVERY:
            self._fit(np.array(self._features), np.array(self._values))
            self._features, self._values = [], []

    def _fit(self, features: Floats, values: Floats) -> None:
        """`features` [n, d], `values` [n]."""
        expected = np.maximum(features @ np.array(self.coefficients), 1e-9)
        ratios = np.clip(values / expected, 1.0 / _OUTLIER, _OUTLIER)
        relative = features / expected[:, None]
        keep = self._keep ** len(values)
        self._products = keep * self._products + relative.T @ relative
        self._targets = keep * self._targets + relative.T @ ratios
        self._solve()

    def _solve(self) -> None:
        """Solves for the coefficients. Negative ones are set to 0, and the others solved for again."""
        own = np.diagonal(self._products)
        pull = max(_PRIOR, _TRUST / self.seen) * own + 1e-9 * own.max()
        products, targets = self._products + np.diag(pull), self._targets + pull * self._guess
        free, found = np.arange(len(targets)), np.zeros(len(targets))
        while len(free):
            solved = np.linalg.solve(products[np.ix_(free, free)], targets[free])
            if solved.min() >= 0.0:
                found[free] = solved
                break
            free = free[solved > 0.0]
        self.coefficients = found.tolist()
        self.solutions += 1


class Logistic:
    """P(label) = 1 / (1 + exp(-weights . features)), by Newton steps over batches of labels.

    Old labels are kept as the curvature of the likelihood, which decays with `memory` (labels).
    """

    def __init__(self, weights: Sequence[float], *, trust: float, memory: float) -> None:
        """`weights`: initial weights, which count as `trust` labels."""
        self.weights = list(weights)
        self._first: Floats = np.array(weights, dtype=np.float64)
        self._memory = memory
        self._curvature: Floats = np.eye(len(weights)) * (0.2 * trust)

    def learn(self, features: Floats, labels: Floats) -> None:
        """One Newton step from `features` [n, d] and `labels` [n]."""
        weights = np.array(self.weights)
        chance = sigmoid(features @ weights)
        self._curvature *= math.exp(-len(labels) / self._memory)
        self._curvature += features.T @ (features * (chance * (1 - chance))[:, None])
        gradient = features.T @ (labels - chance) + _RIDGE * (self._first - weights)
        step = np.linalg.solve(self._curvature + _RIDGE * np.eye(len(weights)), gradient)
        self.weights = (weights + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)).tolist()


def sigmoid(scores: Floats) -> Floats:
    chances: Floats = 1.0 / (1.0 + np.exp(-np.clip(scores, -30.0, 30.0)))
    return chances
