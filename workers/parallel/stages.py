"""Splits layers over pipeline stages so that the slowest stage is as fast as possible. Pure and torch-free."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from outrider.workers.parallel.stage_costs import stage_costs
from outrider.workers.types.model.model_config import ModelConfig


def split_layers(model: ModelConfig, stages: int, draft_steps: int) -> tuple[tuple[int, int], ...]:
    """(first layer, one past the last) of each stage, by modelled cost.

    The first stage also embeds and makes `draft_steps` drafts; the last also runs the head and samples. ValueError if
    there are more stages than layers.
    """
    costs = stage_costs(model, draft_steps)
    return split_by_cost(costs.layers, stages, costs.first_extra, costs.last_extra)


def split_by_cost(
    layer_costs: Sequence[float], stages: int, first_extra: float = 0.0, last_extra: float = 0.0
) -> tuple[tuple[int, int], ...]:
    """(first layer, one past the last) of each stage; no stage is empty.

    `first_extra` is the cost of the first stage beside its layers (embedding, drafts), `last_extra` that of the last
    (head, sampling). Among equally good splits the most even is chosen. ValueError if there are more stages than
    layers.
    """
    layers = len(layer_costs)
    if stages > layers:
        raise ValueError(f"pipeline_parallel_size={stages} is more than the model's {layers} layers")
    upto = np.concatenate([[0.0], np.cumsum(layer_costs)])
    spans = np.where(np.tri(layers + 1, dtype=np.bool_), np.inf, upto[None, :] - upto[:, None])  # [first, end]
    extras = [first_extra * (stage == 0) + last_extra * (stage == stages - 1) for stage in range(stages)]
    slowest = spans[0] + extras[0]  # [end] lowest possible cost of the slowest stage so far
    for extra in extras[1:]:
        slowest = np.maximum(slowest[:, None], spans + extra).min(axis=0)
    return _evenest([spans + extra for extra in extras], slowest[layers] * (1 + 1e-12))


def _evenest(
    costs: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float64]]], limit: float
) -> tuple[tuple[int, int], ...]:
    """The split with the least sum of squares and no stage above `limit`. `costs`: [first, end] of each stage."""
    squares = [np.where(cost <= limit, cost, np.inf) ** 2 for cost in costs]
    best, cuts = squares[0][0], []
    for square in squares[1:]:
        total = best[:, None] + square
        cuts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    bounds = [len(best) - 1]
    for cut in reversed(cuts):
        bounds.append(int(cut[bounds[-1]]))
    return tuple(pairwise([0, *reversed(bounds)]))


def expected_draft_steps(speculation: str | int, model: ModelConfig) -> int:
    """Drafts per round, to balance the stages. "auto" counts as 2."""
    if speculation == "off" or not model.num_nextn_predict_layers:
        return 0
    return 2 if speculation == "auto" else int(speculation)
