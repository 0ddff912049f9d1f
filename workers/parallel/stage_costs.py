"""A cost model of a round's parts on the compiled path, used to balance stages. Pure.

The unit is the time to read one parameter. The constants were measured on scout by benchmarks/engine/round_parts.py
(float32, two cores). Only ratios matter, and a large model's layers outweigh everything else.
"""

from dataclasses import dataclass

from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.model.model_shapes import Shapes, hit_share

SEQUENCES = 4  # assumed per round
CONTEXT = 256  # assumed tokens per sequence
_ROW = 0.15  # multiplying a parameter by a row's value
_KEY = 0.4  # using one value of a cached latent for one head and row, in a score or in the weighted sum
_DRAW = 40.0  # sampling: noise and comparison for one vocabulary entry of a row
_DRAFTING = 5e6  # the drafter's fixed cost per round
_NARROW = 0.5  # reading an 8-bit parameter, as drafters have


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Costs of a verification round and of the drafts for the next one."""

    layers: tuple[float, ...]
    first_extra: float  # of the first stage beside its layers: embedding and drafts
    last_extra: float  # of the last stage: head and sampling


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
    """Of the routed experts, only those that some row chose are read."""
    model = shapes.model
    read = model.n_routed_experts * hit_share(model.n_routed_experts, model.num_experts_per_tok, rows)
    routed = shapes.expert * (read * reading + rows * model.num_experts_per_tok * _ROW)
    return routed + _linear(shapes.shared + shapes.router, rows, reading)


def _linear(parameters: float, rows: float, reading: float) -> float:
    return parameters * (reading + rows * _ROW)


def _head(shapes: Shapes, rows: float, reading: float = 1.0) -> float:
    return _linear(shapes.vocabulary, rows, reading) + rows * shapes.model.vocab_size * _DRAW


def _drafts(shapes: Shapes, steps: int) -> float:
    """The cost of `steps` drafts.

    Each MTP module runs over the accepted rows (half of the drafts are accepted) and the drafts before its own. Then
    the last module runs alone. Each draft needs the head. Modules without drafts in a round still process the accepted
    rows.
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
