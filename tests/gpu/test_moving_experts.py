"""Experts of a GPU's stack that move between ranks: their weights, their routes, and what is counted."""

import numpy as np
import pytest
import torch
from gpu.r1 import small_checkpoint
from gpu.spread import EXPERTS, HIDDEN, WIDER, WIDTH, loader_of, moe_layer, moving_of, random_table

from outrider.workers.model.gpu.stack import Stack
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.shard import Shard


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_checkpoint(tmp_path_factory.mktemp("small"), **WIDER)


def _in_place(checkpoint: Checkpoint, stack: Stack, place: int, expert: int) -> bool:
    """Whether that place of the stack has the expert's stored bytes and scales."""
    name, shapes = f"model.layers.1.mlp.experts.{expert}.", {"gate": WIDTH, "up": WIDTH, "down": HIDDEN}
    stored = {
        part: checkpoint.blocks(f"{name}{part}_proj.weight", (rows, HIDDEN + WIDTH - rows), slice(0, rows))
        if part == "down"
        else checkpoint.blocks(f"{name}{part}_proj.weight", (rows, HIDDEN), slice(0, rows))
        for part, rows in shapes.items()
    }
    values, scales = (torch.cat([stored["gate"][n], stored["up"][n]]) for n in range(2))
    pairs = [
        (stack.gate_up.values[place].view(torch.uint8), values.view(torch.uint8)),
        (stack.down.values[place].view(torch.uint8), stored["down"][0].view(torch.uint8)),
        (stack.gate_up.scale[place], scales),
        (stack.down.scale[place], stored["down"][1]),
    ]
    return all(torch.equal(*pair) for pair in pairs)


def test_experts_that_move_keep_their_fp8_weights_and_scales(checkpoint: Checkpoint) -> None:
    random, shard = np.random.default_rng(0), Shard(datas=4, data=2, spread=True, unit=128, redundant=4)
    mlp = moe_layer(loader_of(checkpoint, shard, moving=True))
    moving, slots = moving_of(mlp), shard.slots(EXPERTS)
    memory = [weight.data_ptr() for weight in (mlp.experts.gate_up.values, mlp.experts.down.scale)]
    for table in (shard.first_table(EXPERTS), *(random_table(random, 4, 5) for _ in range(4))):
        moving.layer.prepare(table)()
        places = moving.places(torch.arange(table.size)).tolist()

        assert sorted(places[slots.start : slots.stop]) == list(range(5))
        assert {*places[: slots.start], *places[slots.stop :]} == {-1}, "on other ranks"
        for slot in slots:
            assert _in_place(checkpoint, mlp.experts, places[slot], int(table.ravel()[slot]))
    assert memory == [weight.data_ptr() for weight in (mlp.experts.gate_up.values, mlp.experts.down.scale)]


def test_nothing_changes_before_the_switch(checkpoint: Checkpoint) -> None:
    shard = Shard(datas=2, spread=True, unit=128)
    mlp = moe_layer(loader_of(checkpoint, shard, moving=True))
    before, table = mlp.experts.gate_up.values.clone(), shard.first_table(EXPERTS)[::-1].copy()
    ids, positions = torch.arange(EXPERTS, dtype=torch.int32)[None], torch.zeros(1, dtype=torch.int32)
    switch = moving_of(mlp).layer.prepare(table)

    assert torch.equal(mlp.experts.gate_up.values.view(torch.uint8), before.view(torch.uint8))
    assert torch.equal(moving_of(mlp).layer.route(ids, positions), ids)
    switch()
    assert moving_of(mlp).layer.route(ids, positions).tolist() == [[*range(8, 16), *range(8)]]


def test_rows_of_padding_are_not_counted(checkpoint: Checkpoint) -> None:
    layer = moving_of(moe_layer(loader_of(checkpoint, Shard(datas=2, spread=True, unit=128), moving=True))).layer
    layer.route(torch.tensor([[1, 2], [2, 3], [4, 5]]), torch.arange(3), torch.tensor([True, True, False]))

    assert layer.take_loads().tolist() == [0, 1, 2, 1, *[0] * 12]
