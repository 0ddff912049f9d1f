"""What each part of a round costs, modelled for the compiled path: the measure by which stages are balanced. Pure.

The unit is the time that reading one parameter takes. What the constants say was measured on scout by
benchmarks/engine/round_parts.py (float32, two cores); only ratios matter, and a large model's layers outweigh all of
them.
"""

from dataclasses import dataclass

from outrider.workers.types.model_config import ModelConfig
from outrider.workers.types.model_shapes import Shapes, hit_share

SEQUENCES = 4  # a round of a lane that has work, each with
CONTEXT = 256  # tokens behind it
_ROW = 0.15  # multiplying a parameter with a row
_KEY = 0.4  # scoring a value of a cached latent for one head and row, or summing it up
_DRAW = 40.0  # an entry of the vocabulary in a row's draw: its noise, and the comparison
_DRAFTING = 5e6  # what the drafter does a round around its passes
_NARROW = 0.5  # reading a parameter of 8 bits, which those of what drafts have


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Of a verification round and the drafts for the next one."""

    layers: tuple[float, ...]
    first_extra: float  # what the first stage does beside layers: embedding and drafts
    last_extra: float  # and the last: the head, and the draw


def stage_costs(model: ModelConfig, draft_steps: int) -> StageCosts:
    shapes = Shapes.of(model)
    verified = SEQUENCES * (1 + draft_steps)
    return StageCosts(
        layers=tuple(_layer(shapes, layer, verified) for layer in range(model.num_hidden_layers)),
        first_extra=verified * model.hidden_size + _drafts(shapes, draft_steps),
        last_extra=_head(shapes, verified),
    )


def _layer(shapes: Shapes, layer: int, rows: float, reading: float = 1.0) -> float:
    model = shapes.model
    a_key = model.num_attention_heads * model.key_products
    attention = _linear(shapes.down + shapes.heads, rows, reading) + rows * CONTEXT * a_key * _KEY
    moe = shapes.moe(layer)
    return attention + (_experts(shapes, rows, reading) if moe else _linear(shapes.dense, rows, reading))


def _experts(shapes: Shapes, rows: float, reading: float) -> float:
    """Of the routed ones those are read that some row chose."""
    model = shapes.model
    read = model.n_routed_experts * hit_share(model.n_routed_experts, model.num_experts_per_tok, rows)
    routed = shapes.expert * (read * reading + rows * model.num_experts_per_tok * _ROW)
    return routed + _linear(shapes.shared + shapes.router, rows, reading)


def _linear(parameters: float, rows: float, reading: float) -> float:
    return parameters * (reading + rows * _ROW)


def _head(shapes: Shapes, rows: float, reading: float = 1.0) -> float:
    return _linear(shapes.vocabulary, rows, reading) + rows * shapes.model.vocab_size * _DRAW


def _drafts(shapes: Shapes, steps: int) -> float:
    """Each MTP module over accepted rows (half of the drafts are) and the drafts behind them, then the last alone.

    A head for each draft. Modules that no draft is asked of follow the accepted rows all the same.
    """
    if not steps:
        return 0.0
    accepted, modules = SEQUENCES * (1 + steps / 2), shapes.model.num_nextn_predict_layers
    behind = [SEQUENCES * (step if step < steps else 0) for step in range(modules)]
    passes = sum(_module(shapes, accepted + drafts) for drafts in behind)
    passes += max(0, steps - modules) * _module(shapes, SEQUENCES)
    return passes + steps * _head(shapes, SEQUENCES, _NARROW) + _DRAFTING


def _module(shapes: Shapes, rows: float) -> float:
    return _layer(shapes, shapes.model.num_hidden_layers, rows, _NARROW) + _linear(shapes.joiner, rows, _NARROW)
