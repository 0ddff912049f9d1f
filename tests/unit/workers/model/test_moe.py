import json
from pathlib import Path

import pytest
import torch
from checkpoints import random_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider.workers.model.layers import Mlp
from outrider.workers.model.linear import FastLinear, make_linear
from outrider.workers.model.moe import Experts, MoE, Router
from outrider.workers.parallel.expert_dispatch import LocalDispatch
from outrider.workers.types.model.model_config import ModelConfig


def config_of(path: Path, *, experts: int, groups: int, topk_group: int, chosen: int, norm: bool = True) -> ModelConfig:
    fields = random_config(
        0, n_routed_experts=experts, n_group=groups, topk_group=topk_group, num_experts_per_tok=chosen,
        norm_topk_prob=norm, routed_scaling_factor=2.5,
    )  # fmt: skip
    (path / "config.json").write_text(json.dumps(fields))
    return ModelConfig.load(path)


def router_of(config: ModelConfig, bias: list[float] | None = None) -> Router:
    """A router whose logits are its input."""
    experts = config.n_routed_experts
    return Router(config, FastLinear(torch.eye(experts)), torch.tensor(bias or [0.0] * experts))


def choose(scores: list[float], bias: list[float], config: ModelConfig) -> list[int]:
    """The paper's choice in plain Python: by (score descending, id ascending), groups by their best two."""
    biased = [score + b for score, b in zip(scores, bias, strict=True)]
    size = len(biased) // config.n_group
    value = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(config.n_group)]
    groups = sorted(range(config.n_group), key=lambda g: (-value[g], g))[: config.topk_group]
    allowed = [e for e in range(len(biased)) if e // size in groups]
    return sorted(sorted(allowed, key=lambda e: (-biased[e], e))[: config.num_experts_per_tok])


# Logits from a handful of values, so that ties are common; the sums that groups are ranked by are exact in binary.
FEW = st.sampled_from([-1.0, 0.0, 0.0, 2.0])
BIASES = st.sampled_from([-0.5, 0.0, 0.0, 0.25])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    logits=st.lists(FEW, min_size=12, max_size=12),
    bias=st.lists(BIASES, min_size=12, max_size=12),
    groups=st.sampled_from([1, 2, 3, 4]),
)
def test_experts_are_chosen_by_score_then_id_from_the_best_groups(
    logits: list[float], bias: list[float], groups: int, tmp_path: Path
) -> None:
    config = config_of(tmp_path, experts=12, groups=groups, topk_group=max(1, groups - 1), chosen=3)

    ids, _ = router_of(config, bias)(torch.tensor([logits]))

    scores = torch.tensor(logits).sigmoid().tolist()
    as_float32 = [torch.tensor(s, dtype=torch.float32).item() for s in scores]
    assert ids.tolist() == [choose(as_float32, bias, config)]


def test_the_bias_chooses_and_does_not_weigh(tmp_path: Path) -> None:
    config = config_of(tmp_path, experts=4, groups=1, topk_group=1, chosen=2)
    logits = torch.tensor([[2.0, 1.0, -1.0, -2.0]])

    ids, weights = router_of(config, [0.0, 0.0, 0.0, 5.0])(logits)

    scores = logits.sigmoid()[0, [0, 3]]
    assert ids.tolist() == [[0, 3]]
    assert torch.allclose(weights[0], scores / scores.sum() * 2.5)


def test_weights_may_be_left_unnormalised(tmp_path: Path) -> None:
    config = config_of(tmp_path, experts=4, groups=1, topk_group=1, chosen=2, norm=False)
    logits = torch.tensor([[2.0, 1.0, -1.0, -2.0]])

    ids, weights = router_of(config)(logits)

    assert ids.tolist() == [[0, 1]]
    assert torch.allclose(weights[0], logits.sigmoid()[0, :2] * 2.5)


def mlp_of(generator: torch.Generator) -> Mlp:
    gate_up, down = torch.randn(48, 12, generator=generator), torch.randn(12, 24, generator=generator)
    return Mlp(make_linear(gate_up, exact=True), make_linear(down, exact=True))


def one_expert(expert: Mlp, row: Tensor) -> Tensor:
    output: Tensor = expert(row.unsqueeze(0))[0]
    return output


@pytest.mark.parametrize("tokens", [1, 2, 11])
def test_an_experts_output_for_a_token_is_whole_unsummed_and_its_own(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    experts = [mlp_of(generator) for _ in range(6)]
    x = torch.randn(tokens, 12, generator=generator)
    ids = torch.rand(tokens, 6, generator=generator).argsort(dim=1)[:, :3].sort(dim=1).values

    outputs = LocalDispatch()(x, ids, Experts(dict(enumerate(experts))))

    for row in range(tokens):
        for place, expert in enumerate(ids[row].tolist()):
            assert torch.equal(outputs[row, place], one_expert(experts[expert], x[row]))


def test_outputs_are_summed_in_ascending_expert_id_and_the_shared_expert_last(tmp_path: Path) -> None:
    config = config_of(tmp_path, experts=12, groups=1, topk_group=1, chosen=4)
    generator = torch.Generator().manual_seed(1)
    experts, shared = [mlp_of(generator) for _ in range(12)], mlp_of(generator)
    router = router_of(config)
    x = torch.randn(5, 12, generator=generator)

    got = MoE(router, Experts(dict(enumerate(experts))), shared, LocalDispatch())(x, torch.arange(len(x)))

    ids, weights = router(x)
    assert torch.equal(ids, ids.sort(dim=1).values)
    for row in range(5):
        total = one_expert(experts[ids[row, 0]], x[row]) * weights[row, 0]
        for place in range(1, 4):
            total = total + one_expert(experts[ids[row, place]], x[row]) * weights[row, place]
        assert torch.equal(got[row], total + one_expert(shared, x[row]))
