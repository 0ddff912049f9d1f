"""Logistic regression that learns from batches of labels, and forgets as they age. Pure."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LONGEST_STEP = 1.0  # of a weight: the first labels may all say the same by chance
_RIDGE = 0.1  # of pull towards the first weights, for ever: half a label's worth


class Logistic:
    """P(label) = 1 / (1 + exp(-weights . features)), by Newton steps over batches of labels.

    What is kept of old labels is the curvature that they gave the likelihood, fading with `memory` (labels).
    """

    def __init__(self, weights: Sequence[float], *, trust: float, memory: float) -> None:
        """`weights` at first, as if `trust` labels had led to them."""
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
