import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from outrider.cluster.planning.presets import load_shape
from outrider.workers.config import resolve_model
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_shapes import Shapes, hit_share


def matrices(prefix: str) -> int:
    """Parameters of scout's tensors of two and more dimensions whose names begin so."""
    total = 0
    for file in resolve_model("scout").glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                shape = tensors.get_slice(name).get_shape()
                total += math.prod(shape) if name.startswith(prefix) and len(shape) > 1 else 0
    return total


def test_scouts_parameters_are_those_of_its_checkpoint() -> None:
    shapes = Shapes.of(load_shape("scout"))
    module = f"model.layers.{shapes.model.num_hidden_layers}."

    own = matrices(module) - matrices(module + "embed_tokens") - matrices(module + "shared_head.head")
    assert shapes.drafter_parameters == own
    assert shapes.parameters == matrices("model.") + matrices("lm_head") - matrices(module)


def test_r1_has_the_published_sizes() -> None:
    shapes = Shapes.of(load_shape("deepseek-r1"))

    assert shapes.parameters == pytest.approx(671.03e9, rel=1e-4)
    assert shapes.drafter_parameters == pytest.approx(11.61e9, rel=1e-3)
    assert shapes.down + shapes.heads == pytest.approx(187.1e6, rel=1e-3)
    assert shapes.expert == pytest.approx(44.04e6, rel=1e-3)
    assert 61 * shapes.cache_bytes(ranks=8) == pytest.approx(70.3e3, rel=1e-3)
    assert Shapes.of(load_shape("deepseek-r1"), kv_cache_dtype="fp8").cache_bytes(ranks=8) == 656


def test_every_mtp_module_counts() -> None:
    one = load_shape("deepseek-r1")
    three = Shapes.of(replace(one, num_nextn_predict_layers=3))

    assert three.drafter_parameters == 3 * Shapes.of(one).drafter_parameters
    assert three.parameters == Shapes.of(one).parameters
    assert Shapes.of(replace(one, num_nextn_predict_layers=0)).drafter_parameters == 0


@pytest.mark.parametrize(("weights", "width"), [("auto", 1), ("fp8", 1), ("bfloat16", 2), ("float32", 4)])
def test_weights_are_as_wide_as_asked_for(weights: str, width: int) -> None:
    assert Shapes.of(load_shape("deepseek-v3"), weights).weight_bytes == pytest.approx(width, rel=1e-3)


def test_a_checkpoint_that_is_not_quantised_stays_wide() -> None:
    assert Shapes.of(load_shape("scout")).weight_bytes == 2


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="weights must be"):
        Shapes.of(load_shape("scout"), "int4")
    with pytest.raises(ValueError, match="kv_cache_dtype must be"):
        Shapes.of(load_shape("scout"), kv_cache_dtype="int4")


def test_an_unknown_model_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(CheckpointError, match=r"deepseek-r1.*scout"):
        load_shape("nowhere")


@pytest.mark.parametrize(("experts", "chosen", "tokens"), [(256, 8, 1), (256, 8, 16), (8, 2, 5), (288, 8, 2048)])
def test_the_experts_that_rows_hit_are_those_that_random_routing_does(experts: int, chosen: int, tokens: int) -> None:
    random = np.random.default_rng(0)
    hits = [
        len(np.unique(np.argsort(random.random((tokens, experts)), axis=1)[:, :chosen]))
        for _ in range(max(4, 400 // tokens))
    ]

    assert hit_share(experts, chosen, tokens) == pytest.approx(np.mean(hits) / experts, rel=0.03)
