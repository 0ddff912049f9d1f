"""Experts spread over ranks: wherever their copies are, and move to between two rounds, rows have the bits of one rank.

The ranks are threads here, as in test_sharded_bits.py.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_config, write_checkpoint
from rounds import Decoder, Rows, load_model, random_tokens
from sharded import all_sharings, close_all, on_all_ranks
from torch import Tensor, nn

from outrider.workers.config import ParallelConfig
from outrider.workers.experts.nodes import expert_layout
from outrider.workers.experts.placement import IntArray
from outrider.workers.experts.placing import place_experts
from outrider.workers.model.moe import Router
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

BLOCKS = [[3, 1, 7, 5], [2, 6, 4, 8]]
TOKENS = [24, 40]
EXPERTS = 8
SHAPE = {
    "hidden_size": 80, "intermediate_size": 96, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": EXPERTS, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 40, "vocab_size": 97,
}  # fmt: skip
SPLITS = {
    "TP2+EP2": ParallelConfig(tensor_parallel_size=2, expert_parallel_size=2),
    "TP4+EP4": ParallelConfig(tensor_parallel_size=4, expert_parallel_size=4),
    "DP2+EP2": ParallelConfig(data_parallel_size=2, expert_parallel_size=2),
    "DP2xTP2+EP4": ParallelConfig(data_parallel_size=2, tensor_parallel_size=2, expert_parallel_size=4),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    write_checkpoint(folder, random_config(3, **SHAPE), seed=3)
    return folder


def _rounds() -> list[dict[int, Rows]]:
    """Two prompts in chunks, then a few rows at a time; in some rounds one sequence alone."""
    prompts = [random_tokens(length, SHAPE["vocab_size"], seed=length) for length in TOKENS]
    cuts = {0: [(0, 0), (0, 17), (17, 20), (20, 21), (21, 24)], 1: [(0, 30), (30, 31), (31, 31), (31, 36), (36, 40)]}
    return [
        {n: Rows(prompts[n][a:b], a, BLOCKS[n]) for n, own in cuts.items() for a, b in [own[turn]] if a < b}
        for turn in range(5)
    ]


def _random_table(random: np.random.Generator, ranks: int, slots: int) -> IntArray:
    """Every expert somewhere, and no two copies on one rank."""
    while True:
        table = np.stack([random.permutation(EXPERTS)[:slots] for _ in range(ranks)])
        if len(np.unique(table)) == EXPERTS:
            return table


def _run(model: Decoder, sequences: list[int], ranks: int, moved: bool) -> list[Tensor]:
    """The states of each round; between two of them, if `moved`, every layer's experts go elsewhere."""
    random, states = np.random.default_rng(0), []
    for each in _rounds():
        states.append(model.hidden(*([each[n] for n in sequences if n in each] or [Rows([], 0, [])])))
        for layer in model.expert_layers if moved else ():
            layer.prepare(_random_table(random, ranks, (EXPERTS + ranks) // ranks))()
    return states


@pytest.mark.parametrize(
    ("layout", "kernels"),
    [*((layout, kernels) for layout in SPLITS for kernels in ("torch", "float32")), ("DP2xTP2+EP4", "int8")],
)
def test_experts_that_move_between_rounds_change_no_bit(path: Path, layout: str, kernels: str) -> None:
    parallel = SPLITS[layout]
    datas, ranks = parallel.data_parallel_size, parallel.stage_size
    groups = [list(range(data, 2, datas)) for data in range(datas)]
    expected = [_run(load_model(path, kernels), own, ranks, moved=False) for own in groups]
    sharings = all_sharings(ModelConfig.load(path), parallel, redundant=ranks)

    def run(sharing: Sharing) -> list[Tensor]:
        return _run(load_model(path, kernels, sharing=sharing), groups[sharing.shard.data], ranks, moved=True)

    found = on_all_ranks(sharings, run)
    close_all(sharings)
    for sharing, own in zip(sharings, found, strict=True):
        for seen, wanted in zip(own, expected[sharing.shard.data], strict=True):
            assert torch.equal(seen, wanted), sharing.shard


@pytest.mark.parametrize("kernels", ["torch", "float32"])
def test_groups_that_stay_whole_on_two_nodes_change_no_bit(path: Path, kernels: str) -> None:
    """Each node has one group of four experts, and two spare slots."""
    model, parallel = ModelConfig.load(path), SPLITS["DP2xTP2+EP4"]
    layout = expert_layout(model, ranks=4, nodes=2, redundant_experts=4)
    moved = place_experts(np.array([[9.0, 1, 1, 1, 1, 1, 1, 4]]), layout).experts[0]
    expected = [_run(load_model(path, kernels), [data], 4, moved=False) for data in range(2)]
    sharings = all_sharings(model, parallel, redundant=4, nodes=2)

    def run(sharing: Sharing) -> list[Tensor]:
        decoder = load_model(path, kernels, sharing=sharing)
        sequences = [sharing.shard.data]
        before = _run(decoder, sequences, 4, moved=False)
        for layer in decoder.expert_layers:
            layer.prepare(moved)()
        after = _run(decoder, sequences, 4, moved=False)
        assert all(map(torch.equal, before, after))
        return after

    found = on_all_ranks(sharings, run)
    close_all(sharings)
    assert layout.parts == 2
    assert np.array_equal(sharings[0].shard.first_table(EXPERTS), layout.first_table())
    assert not np.array_equal(moved, layout.first_table())
    for sharing, own in zip(sharings, found, strict=True):
        assert all(map(torch.equal, own, expected[sharing.shard.data]))


@pytest.mark.parametrize("kernels", ["torch", "float32"])
@pytest.mark.parametrize("layout", ["TP2+EP2", "DP2xTP2+EP4"])
def test_every_choice_of_an_expert_is_counted_once(path: Path, layout: str, kernels: str) -> None:
    parallel = SPLITS[layout]
    datas = parallel.data_parallel_size
    groups = [list(range(data, 2, datas)) for data in range(datas)]
    sharings = all_sharings(ModelConfig.load(path), parallel, redundant=parallel.stage_size)

    def run(sharing: Sharing) -> list[IntArray]:
        model = load_model(path, kernels, sharing=sharing)
        _run(model, groups[sharing.shard.data], parallel.stage_size, moved=True)
        counted = [layer.take_loads() for layer in model.expert_layers]
        assert not any(layer.take_loads().any() for layer in model.expert_layers), "taken twice"
        return counted

    found = on_all_ranks(sharings, run)
    close_all(sharings)
    for sharing, counted in zip(sharings, found, strict=True):
        assert np.array_equal(counted, _chosen(path, groups[sharing.shard.data])), sharing.shard


def _chosen(path: Path, sequences: list[int]) -> list[list[int]]:
    """How often each expert of each layer is chosen, as the routers of one rank in PyTorch say."""
    chosen: defaultdict[nn.Module, list[int]] = defaultdict(list)
    model = load_model(path, "torch")

    def note(router: nn.Module, _: object, output: tuple[Tensor, Tensor]) -> None:
        chosen[router] += output[0].flatten().tolist()

    routers = [module for module in model.stages[0].modules() if isinstance(module, Router)]
    for router in routers:
        router.register_forward_hook(note)
    _run(model, sequences, ranks=1, moved=False)
    return [[chosen[router].count(expert) for expert in range(EXPERTS)] for router in routers]
