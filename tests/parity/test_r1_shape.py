"""A model with R1's router and heads over tiny widths: who has which heads, and that all ranks route alike.

That its logits have the bits of one rank is in test_sharded_bits.py.
"""

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from checkpoints import random_config, write_checkpoint
from rounds import Model, Rows, load_model, random_tokens
from sharded import all_sharings, close_all, on_all_ranks
from torch import Tensor, nn

from outrider.workers.config import ParallelConfig
from outrider.workers.model.attention import Absorbed
from outrider.workers.model.moe import Router
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

HEADS, EXPERTS, GROUPS, KEPT_GROUPS, CHOSEN = 128, 256, 8, 4, 8
SHAPE = {
    "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 2, "first_k_dense_replace": 1,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "q_lora_rank": 48, "kv_lora_rank": 32,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": EXPERTS, "n_group": GROUPS,
    "topk_group": KEPT_GROUPS, "num_experts_per_tok": CHOSEN, "n_shared_experts": 1, "moe_intermediate_size": 16,
    "vocab_size": 300, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
}  # fmt: skip
TOKENS = random_tokens(24, 300, seed=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("r1")
    write_checkpoint(folder, random_config(5, **SHAPE), seed=5)
    return folder


@pytest.fixture(scope="module")
def whole(path: Path) -> Model:
    return _loaded(path)


def _loaded(path: Path, sharing: Sharing | None = None) -> Model:
    model = load_model(path, "torch", sharing=sharing)
    assert isinstance(model, Model)
    return model


def _forms(model: Model) -> list[Absorbed]:
    return [module for module in model.stages[0].modules() if isinstance(module, Absorbed)]


def _routed(model: Model) -> list[tuple[Tensor, Tensor]]:
    """Ids and weights [rows, chosen] that each router gives the rows of a round."""
    found: defaultdict[nn.Module, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for module in model.stages[0].modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda router, _, output: found[router].append(output))
    model.hidden(Rows(TOKENS, 0, [1, 2]))
    return [output for outputs in found.values() for output in outputs]


@pytest.mark.parametrize("tensors", [2, 4, 8])
def test_heads_are_dealt_out_whole_in_order(path: Path, whole: Model, tensors: int) -> None:
    sharings = all_sharings(ModelConfig.load(path), ParallelConfig(tensor_parallel_size=tensors))
    shared = on_all_ranks(sharings, lambda sharing: _forms(_loaded(path, sharing)))
    close_all(sharings)

    for layer, form in enumerate(_forms(whole)):
        parts = [rank[layer] for rank in shared]
        assert [part.key_up.shape[0] for part in parts] == [HEADS // tensors] * tensors
        assert torch.equal(torch.cat([part.key_up for part in parts]), form.key_up)
        assert torch.equal(torch.cat([part.value_up for part in parts]), form.value_up)


@pytest.mark.parametrize("experts", [1, 8])
@pytest.mark.parametrize("tensors", [8])
def test_all_ranks_route_as_one_does_within_few_groups(path: Path, whole: Model, tensors: int, experts: int) -> None:
    parallel = ParallelConfig(tensor_parallel_size=tensors, expert_parallel_size=experts)
    sharings = all_sharings(ModelConfig.load(path), parallel)
    shared = on_all_ranks(sharings, lambda sharing: _routed(_loaded(path, sharing)))
    close_all(sharings)
    wanted = _routed(whole)

    assert [len(rank) for rank in shared] == [len(wanted)] * tensors
    for rank in shared:
        for (ids, weights), (wanted_ids, wanted_weights) in zip(rank, wanted, strict=True):
            assert torch.equal(ids, wanted_ids)
            assert torch.equal(weights, wanted_weights)
    for ids, _ in wanted:
        assert ids.shape == (len(TOKENS), CHOSEN)
        assert len(ids.unique()) > EXPERTS // 8, "rows choose the same few experts: equality says little"
        groups = ids // (EXPERTS // GROUPS)
        assert max(len(row.unique()) for row in groups) <= KEPT_GROUPS
