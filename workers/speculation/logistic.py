"""Logistic regression that learns as labels come, and forgets as they age. Pure."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FIRST_BATCH, _LARGEST_BATCH = 24, 144  # labels between two steps: a step takes as long for many as for few
_RIDGE = 0.1  # of pull towards the first weights, for ever: half a label's worth


class Logistic:
    """P(label) = 1 / (1 + exp(-weights . features)), by Newton steps over batches of labels.

    What is kept of old labels is the curvature that they gave the likelihood, fading with `memory` (labels).
    """

    def __init__(self, weights: Sequence[float], *, trust: float, memory: float) -> None:
        """`weights` at first, as if `trust` labels had led to them."""
        self.weights = list(weights)
        self._first: Floats = np.array(weights, dtype=np.float64)
        self._memory, self._batch = memory, _FIRST_BATCH
        self._curvature: Floats = np.eye(len(weights)) * (0.2 * trust)
        self._features: list[Sequence[float]] = []
        self._labels: list[float] = []

    def observe(self, features: Sequence[float], label: bool) -> None:
        self._features.append(features)
        self._labels.append(float(label))
        if len(self._labels) >= self._batch:
            self._learn(np.array(self._features), np.array(self._labels))
            self._features, self._labels = [], []
            self._batch = min(self._batch + _FIRST_BATCH, _LARGEST_BATCH)

    def _learn(self, features: Floats, labels: Floats) -> None:
        """One Newton step from `features` [n, d] and `labels` [n]."""
        weights = np.array(self.weights)
        chance = sigmoid(features @ weights)
        self._curvature *= math.exp(-len(labels) / self._memory)
        self._curvature += features.T @ (features * (chance * (1 - chance))[:, None])
        gradient = features.T @ (labels - chance) + _RIDGE * (self._first - weights)
        step = np.linalg.solve(self._curvature + _RIDGE * np.eye(len(weights)), gradient)
        self.weights = (weights + step).tolist()


def sigmoid(scores: Floats) -> Floats:
    chances: Floats = 1.0 / (1.0 + np.exp(-np.clip(scores, -30.0, 30.0)))
    return chances


def logit(chance: float) -> float:
    return math.log(chance / (1.0 - chance))
