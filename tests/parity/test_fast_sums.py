"""Under numerics "fast" ranks of a tensor group add parts of sums up, in PyTorch: near what one rank computes.

The ranks are threads here, as in test_sharded_bits.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Layout, random_config, write_checkpoint
from rounds import Rows, load_model, random_tokens
from sharded import all_sharings, close_all, on_all_ranks
from torch import Tensor

from outrider.cluster.planning.collectives import REDUCE, RoundShape
from outrider.cluster.planning.efficiency import Workload
from outrider.cluster.planning.split import Split
from outrider.workers.parallel.collectives.collectives import total_traffic
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.model.model_shapes import Shapes

SHAPE = {
    "hidden_size": 80, "intermediate_size": 96, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 40, "vocab_size": 97,
}  # fmt: skip
FP8 = {**SHAPE, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "q_lora_rank": 48}
SPLITS = {
    "TP2": Split(tensor=2),
    "TP4": Split(tensor=4),
    "TP2+EP2": Split(tensor=2, expert=2),
    "TP4+EP4": Split(tensor=4, expert=4),
    "DP2xTP2": Split(data=2, tensor=2),
    "DP2xTP2+EP4": Split(data=2, tensor=2, expert=4),
}
BLOCKS = [[3, 1, 7], [2, 6, 4]]
PROMPTS = [random_tokens(24, 97, seed=1), random_tokens(17, 97, seed=2)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast")
    write_checkpoint(folder, random_config(3, **SHAPE), seed=3)
    return folder


def _states(path: Path, sequences: list[int], numerics: str, sharing: Sharing | None = None) -> Tensor:
    """Of every token of the prompts, and of a round of one row each."""
    model = load_model(path, "torch", numerics=numerics, sharing=sharing)
    rounds = [[Rows(PROMPTS[n][:-1], 0, BLOCKS[n]) for n in sequences]]
    rounds.append([Rows(PROMPTS[n][-1:], len(PROMPTS[n]) - 1, BLOCKS[n]) for n in sequences])
    return torch.cat([model.hidden(*parts) for parts in rounds])


def _on_ranks(path: Path, split: Split, numerics: str = "fast") -> tuple[list[Tensor], list[Sharing], dict[str, Any]]:
    """The states on every rank, who they are, and what rank 0 exchanged."""
    sharings = all_sharings(ModelConfig.load(path), split.parallel())

    def run(sharing: Sharing) -> Tensor:
        return _states(path, list(range(sharing.shard.data, 2, split.data)), numerics, sharing)

    found = on_all_ranks(sharings, run)
    carried = total_traffic(sharings[0].groups)
    close_all(sharings)
    return found, sharings, {purpose: each.count for purpose, each in carried.items()}


def _assert_near(path: Path, split: Split) -> None:
    found, sharings, _ = _on_ranks(path, split)
    exact = [_states(path, list(range(data, 2, split.data)), "exact") for data in range(split.data)]

    for sharing, states in zip(sharings, found, strict=True):
        wanted = exact[sharing.shard.data]
        assert (states - wanted).norm(dim=1).div(wanted.norm(dim=1)).max() < 1e-4, sharing.shard
        first = found[sharing.shard.data * split.tensor]
        assert torch.equal(states, first), "ranks of a tensor group must go on with the same bits"


@pytest.mark.parametrize("layout", SPLITS)
def test_states_are_near_those_of_one_rank_and_the_same_on_all_ranks_of_a_group(path: Path, layout: str) -> None:
    _assert_near(path, SPLITS[layout])


@pytest.mark.parametrize("layout", ["TP2", "TP2+EP2"])
def test_fp8_weights_are_cut_along_their_inputs_too(tmp_path: Path, layout: str) -> None:
    write_checkpoint(tmp_path, random_config(6, **FP8), seed=6, layout=Layout(fp8_block=16))

    _assert_near(tmp_path, SPLITS[layout])


@pytest.mark.parametrize("layout", ["TP2", "TP4", "TP2+EP2", "TP4+EP4"])
def test_a_round_takes_the_sums_that_the_planner_counts_and_exactness_none(path: Path, layout: str) -> None:
    split, rounds = SPLITS[layout], 2
    model = ModelConfig.load(path)
    _, _, fast = _on_ranks(path, split)
    _, _, exact = _on_ranks(path, split, "exact")
    shape = RoundShape(Shapes.of(model, "float32"), split, Workload(numerics="fast"), rows=1)
    dense, moe = shape.dense(), shape.experts()
    planned = [*shape.embedding(), *shape.attention() * 3, *dense, *moe * 2]

    assert {one.purpose for one in planned if one.kind == REDUCE} == {"attention outputs", "layer outputs"}
    assert fast == {
        purpose: rounds * sum(one.purpose == purpose for one in planned) for purpose in {one.purpose for one in planned}
    }
    assert sum(fast.values()) < sum(exact.values()) / 2
