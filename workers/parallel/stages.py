"""Which layers each pipeline stage holds. Pure and torch-free."""

from outrider.workers.model.config import ModelConfig

# What the ends of the pipeline do besides layers, in one layer's time on one row (benchmarks/round.py, on a CPU).
_HEAD = 0.6  # final norm, projection to the vocabulary and the draw
_MTP_LAYER = 1.1


def split_layers(model: ModelConfig, stages: int, draft_steps: int) -> tuple[tuple[int, int], ...]:
    """(first layer, one past the last) of each stage, so that the slowest stage is as fast as can be.

    The first stage also makes `draft_steps` drafts, each an MTP layer and a head; the last projects and samples.
    ValueError if there are more stages than layers.
    """
    layers = model.num_hidden_layers
    if stages > layers:
        raise ValueError(f"pipeline_parallel_size={stages} is more than the model's {layers} layers")
    first_extra, last_extra = draft_steps * (_MTP_LAYER + _HEAD), _HEAD
    if stages == 1:
        return ((0, layers),)
    total = layers + first_extra + last_extra
    first = _clamp(round(total / stages - first_extra), 1, layers - (stages - 1))
    last = _clamp(round(total / stages - last_extra), 1, layers - first - (stages - 2))
    middle = stages - 2
    sizes = [first, *_even(layers - first - last, middle), last] if middle else [first, layers - first]
    ends = [sum(sizes[: i + 1]) for i in range(stages)]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _even(layers: int, stages: int) -> list[int]:
    return [layers // stages + (i < layers % stages) for i in range(stages)]


def expected_draft_steps(speculation: str | int, model: ModelConfig) -> int:
    """Drafts a round will make, for the balance of the stages: with "auto" a middling depth is assumed."""
    if speculation == "off" or not model.num_nextn_predict_layers:
        return 0
    return 2 if speculation == "auto" else int(speculation)
