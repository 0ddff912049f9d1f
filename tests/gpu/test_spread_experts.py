"""Experts that are spread over data groups on GPUs: FP8 kernels, rows of all groups, and moves between ranks.

The ranks are threads, as in test_sharded_bits.py. Kernels run in Triton's interpreter where bits are compared, and as
their twins elsewhere.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import random_config, write_checkpoint
from gpu.pretend_cuda import Counts
from gpu.r1 import SMALL, decoding, run_round, slice_of_r1, small_checkpoint
from gpu.spread import CHOSEN, EXPERTS, HIDDEN, WIDER, WIDTH, Partner, closed_areas, loader_of, moe_layer, random_table
from rounds import Model, Rows, flat_rows, random_tokens
from sharded import all_sharings, close_all, on_all_ranks
from torch import Tensor

from outrider.cluster.planning.efficiency import Efficiency
from outrider.cluster.planning.presets import load_shape
from outrider.kernels.gpu import experts as kernel
from outrider.workers.config import EngineConfig, ParallelConfig
from outrider.workers.engine.execution.memory import round_bytes
from outrider.workers.experts.placement import IntArray
from outrider.workers.model.gpu import stack as stacks
from outrider.workers.model.gpu.stage import GpuModules, GpuStage
from outrider.workers.model.gpu.weights import moving_layers
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.expert_dispatch import AllToAll
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

CUDA = torch.device("cuda", 0)
SPLITS = {
    "DP2+EP2": ParallelConfig(data_parallel_size=2, expert_parallel_size=2),
    "DP2xTP2+EP4": ParallelConfig(data_parallel_size=2, tensor_parallel_size=2, expert_parallel_size=4),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_checkpoint(tmp_path_factory.mktemp("small"), **WIDER)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacks run the kernel in Triton's interpreter, which only one thread at a time may use."""
    alone = threading.Lock()

    def run(*arguments: Any) -> Tensor:
        with alone:
            return kernel.launch(*arguments)

    monkeypatch.setattr(stacks, "experts", run)


def _inputs(data: int, rows: int) -> tuple[Tensor, Tensor]:
    """The rows of a data group and their experts. Nobody chooses expert 3."""
    generator = torch.Generator().manual_seed(10 * rows + data)
    scores = torch.rand(rows, EXPERTS, generator=generator)
    scores[:, 3] = 2
    ids = scores.argsort(dim=1)[:, :CHOSEN].sort(dim=1).values.int()
    return torch.randn(rows, HIDDEN, generator=generator), ids


def _in_8_bits(x: Tensor) -> Tensor:
    """Each 128 values of `x` rounded to e4m3 with a scale that makes the largest 448."""
    groups = x.view(-1, 128)
    scales = groups.abs().amax(dim=1, keepdim=True) / 448
    return ((groups / scales).to(torch.float8_e4m3fn).double() * scales).view(x.shape)


def _plain_expert(checkpoint: Checkpoint, expert: int, x: Tensor) -> Tensor:
    """By the formula in float64, for one row, from weights that are dequantised as they are read."""
    name = f"model.layers.1.mlp.experts.{expert}."
    gate, up, down = (
        checkpoint.tensor(f"{name}{part}_proj.weight", torch.float32, shape).double()
        for part, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH)))
    )
    read = _in_8_bits(x.double())
    return down @ _in_8_bits(torch.nn.functional.silu(gate @ read) * (up @ read))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("layout", SPLITS)
@pytest.mark.parametrize("counts", [(2, 3), (0, 1), (0, 0), pytest.param((20, 70), marks=pytest.mark.full)], ids=str)
def test_an_experts_output_has_the_bits_of_one_rank(
    checkpoint: Checkpoint, layout: str, counts: tuple[int, int]
) -> None:
    whole = moe_layer(loader_of(checkpoint, Shard(unit=128))).experts
    wanted = [whole(*_inputs(data, rows), whole=True).view(rows, CHOSEN, HIDDEN) for data, rows in enumerate(counts)]

    def run(sharing: Sharing) -> Tensor:
        own = moe_layer(loader_of(checkpoint, sharing.shard)).experts
        assert own.gate_up.values.dtype == own.down.values.dtype == torch.float8_e4m3fn

        def of_slots(rows: Tensor, slots: Tensor) -> Tensor:
            return own(rows, (slots - own.first).unsqueeze(1), whole=True)

        x, ids = _inputs(sharing.shard.data, counts[sharing.shard.data])
        return AllToAll(sharing, HIDDEN, EXPERTS)(x, ids, of_slots)

    sharings = all_sharings(ModelConfig.load(checkpoint.path), SPLITS[layout])
    found = on_all_ranks(sharings, run)
    close_all(sharings)
    for sharing, outputs in zip(sharings, found, strict=True):
        assert torch.equal(outputs, wanted[sharing.shard.data][..., sharing.shard.own(HIDDEN)])
    for data, rows in enumerate(counts):
        x, ids = _inputs(data, rows)
        for row, place in np.ndindex(*ids.shape):
            exact = _plain_expert(checkpoint, int(ids[row, place]), x[row])
            assert (wanted[data][row, place] - exact).norm() < 0.01 * exact.norm()


TOKENS, BLOCKS = [24, 40], [[3, 1, 7, 5], [2, 6, 4, 8]]


def _rounds() -> list[dict[int, Rows]]:
    """Two prompts in chunks, then a few rows at a time; in some rounds one sequence alone."""
    prompts = [random_tokens(length, SMALL["vocab_size"], seed=length) for length in TOKENS]
    cuts = {0: [(0, 0), (0, 17), (17, 20), (20, 21), (21, 24)], 1: [(0, 30), (30, 31), (31, 31), (31, 36), (36, 40)]}
    return [
        {n: Rows(prompts[n][a:b], a, BLOCKS[n]) for n, own in cuts.items() for a, b in [own[turn]] if a < b}
        for turn in range(5)
    ]


def _stage(checkpoint: Checkpoint, sharing: Sharing, **settings: Any) -> tuple[GpuStage, GpuModules]:
    loader = loader_of(checkpoint, sharing.shard, **settings)
    stage = GpuStage.load(loader, range(2), block_size=16, sharing=sharing, progress=lambda done, total: None)
    module = GpuModules.load(loader, stage)
    stage.allocate_cache(16)
    module.allocate_cache(16)
    return stage, module


def _run(stage: GpuStage, module: GpuModules, data: int, tables: Sequence[IntArray], first: int = 0) -> list[Tensor]:
    """A data group's states of each round from `first` on: of the stage, of the MTP module. Experts move after each."""
    layers, states = moving_layers([*stage.layers, *(each.layer for each in module.modules)]), list[Tensor]()
    for each, table in list(zip(_rounds(), tables, strict=True))[first:]:
        parts = [each.get(data, Rows([], 0, []))]
        states.append(stage.run(flat_rows(parts), None))
        states.append(module.run(flat_rows(parts, mtp=True), states[-1]))
        for layer in layers:
            layer.prepare(table)()
    return states


def _close(found: Tensor, wanted: Tensor) -> bool:
    near = (found - wanted).norm(dim=1) < 1e-4 * wanted.norm(dim=1)
    return found.shape == wanted.shape and bool(near.all())


def _on_ranks(
    checkpoint: Checkpoint, parallel: ParallelConfig, tables: list[IntArray], first: int = 0
) -> list[tuple[Shard, Tensor]]:
    """The states of each rank and round."""
    redundant = tables[0].size - EXPERTS
    sharings = all_sharings(ModelConfig.load(checkpoint.path), parallel, redundant=redundant)

    def run(sharing: Sharing) -> list[Tensor]:
        return _run(*_stage(checkpoint, sharing, moving=True), sharing.shard.data, tables, first)

    found = on_all_ranks(sharings, run)
    close_all(sharings)
    return [(sharing.shard, states) for sharing, own in zip(sharings, found, strict=True) for states in own]


@pytest.mark.parametrize("layout", SPLITS)
def test_a_stage_whose_experts_are_spread_and_move_computes_what_one_rank_does(tmp_path: Path, layout: str) -> None:
    """And what PyTorch does. Twins are not batch-invariant, so results agree within rounding only."""
    write_checkpoint(tmp_path, random_config(1, **{**SMALL, **WIDER}))
    ranks = SPLITS[layout].stage_size
    tables = [random_table(np.random.default_rng(turn), ranks, (EXPERTS + ranks) // ranks) for turn in range(5)]
    alone = _stage(Checkpoint(tmp_path), Sharing())
    wanted = [_run(*alone, data, tables) for data in range(2)]
    on_torchs_path = Model.load(tmp_path)
    found = _on_ranks(Checkpoint(tmp_path), SPLITS[layout], tables)

    assert len(found) == ranks * len(wanted[0])
    for place, (shard, states) in enumerate(found):
        assert _close(states, wanted[shard.data][place % len(wanted[0])])
    for each, states in zip(_rounds(), wanted[1][::2], strict=True):
        assert 1 not in each or _close(states, on_torchs_path.hidden(each[1]))


@pytest.mark.full
@pytest.mark.usefixtures("interpreted")
def test_a_stage_of_fp8_weights_has_the_bits_of_one_rank(checkpoint: Checkpoint) -> None:
    tables = [random_table(np.random.default_rng(turn), 2, 9) for turn in range(5)]
    alone = _stage(checkpoint, Sharing(shard=Shard(unit=128)))
    wanted = [_run(*alone, data, tables, first=3) for data in range(2)]
    found = _on_ranks(checkpoint, SPLITS["DP2+EP2"], tables, first=3)

    assert len(found) == 2 * len(wanted[0])
    for place, (shard, states) in enumerate(found):
        assert torch.equal(states, wanted[shard.data][place % len(wanted[0])])


def test_a_round_has_the_launches_that_the_planner_counts(pretend: Counts, checkpoint: Checkpoint) -> None:
    shard, partner = Shard(datas=2, spread=True, unit=128), Partner()
    stage, _ = slice_of_r1(checkpoint, CUDA, 64, layers=6, sharing=Sharing(shard=shard, stage=partner))
    pretend.clear()
    run_round(stage, 1, 4, 20)
    efficiency = Efficiency()
    dense, sparse = (efficiency.layer_launches(moe=moe, dispatched=moe) for moe in (False, True))

    assert pretend.kinds.total() + partner.calls == 3 * dense + 3 * sparse + 5


def test_the_host_waits_for_the_sizes_of_each_exchange_and_for_nothing_else(
    pretend: Counts, checkpoint: Checkpoint
) -> None:
    shard = Shard(datas=2, spread=True, unit=128)
    stage, _ = slice_of_r1(checkpoint, CUDA, 64, layers=6, sharing=Sharing(shard=shard, stage=Partner()))
    for sequences, rows in ((1, 4), (4, 4), (1, 0)):
        run_round(stage, sequences, rows, 20) if rows else stage.run(decoding(1, 0, 20), None)
        pretend.clear()
        run_round(stage, sequences, rows, 20) if rows else stage.run(decoding(1, 0, 20), None)
        taken = pretend.taken()

        of_sizes = [each for each in taken.syncs if "expert_dispatch.py" in each]
        assert len(of_sizes) == 1, taken.syncs
        assert taken.syncs[of_sizes[0]] == 3, "MoE layers"
        assert taken.syncs.total() == 3 + bool(rows)
        assert len(taken.copies_inside) == 3


def _peer_stage(checkpoint: Checkpoint) -> GpuStage:
    """The first of two data groups whose GPUs access each other's memory. The other has only padding."""
    shard = Shard(datas=2, spread=True, unit=128)
    sharing = Sharing(shard=shard, stage=Partner(), dispatch_areas=closed_areas(shard, CUDA))
    return slice_of_r1(checkpoint, CUDA, 64, layers=6, sharing=sharing)[0]


def test_with_peer_memory_the_host_waits_for_nothing(pretend: Counts, checkpoint: Checkpoint) -> None:
    stage, efficiency = _peer_stage(checkpoint), Efficiency()
    for rows, most in ((4, 4), (4, 7), (0, 3)):
        round = replace(decoding(1, rows, 20), most_rows=most)
        stage.run(round, None)
        pretend.clear()
        stage.run(round, None)
        taken = pretend.taken()

        assert taken.syncs.total() == 0
        assert taken.copies_inside == []
        if rows == most:
            dense, sparse = (efficiency.layer_launches(moe=moe, peers=moe) for moe in (False, True))
            assert taken.kinds.total() == 3 * dense + 3 * sparse + 5


@pytest.mark.parametrize(("rows", "most"), [(4, 4), (4, 7), (0, 3)])
def test_with_peer_memory_a_graph_gives_the_eager_result(
    pretend: Counts, checkpoint: Checkpoint, rows: int, most: int
) -> None:
    stage, round = _peer_stage(checkpoint), replace(decoding(1, rows, 20), most_rows=most)
    eager = stage.run(round, None).cpu()
    assert stage.decoder.capturable
    stage.use_graphs()
    captured = stage.run(round, None).cpu()
    pretend.clear()
    replayed = stage.run(round, None)

    assert pretend.kinds["graph"] == 1
    assert eager.shape == captured.shape == (rows, HIDDEN)
    assert torch.equal(replayed.cpu(), captured)
    assert not rows or (eager - captured).float().abs().max() < 0.1 * eager.float().std()


def test_larger_rounds_exchange_sizes(pretend: Counts, checkpoint: Checkpoint) -> None:
    stage = _peer_stage(checkpoint)
    stage.use_graphs()
    round = replace(decoding(1, 4, 20), most_rows=65)
    stage.run(round, None)
    taken = pretend.taken()

    assert taken.kinds["graph"] == 0
    assert [each for each in taken.syncs if "expert_dispatch.py" in each]


def test_the_largest_round_has_room_for_the_rows_of_other_data_groups() -> None:
    """Four times a rank's mean of pairs: their rows, and the outputs of its experts."""
    model, config = load_shape("deepseek-r1"), EngineConfig(max_num_batched_tokens=2048)
    apart, spread = (round_bytes(config, model, Shard(datas=16, spread=each), 2) for each in (False, True))

    assert spread - apart >= 4 * 2048 * 8 * 2 * 7168 * 2
