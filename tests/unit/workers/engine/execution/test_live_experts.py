"""A rank obeys orders about experts; its layers are stand-ins that only count and remember."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from sharded import all_sharings, close_all, on_all_ranks

from outrider.workers.config import ParallelConfig, resolve_model
from outrider.workers.engine.execution.live_experts import LiveExperts
from outrider.workers.experts.orders import Order, State, order, prepare
from outrider.workers.experts.placement import IntArray
from outrider.workers.parallel.collectives.collectives import SingleRank
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig

CPU = torch.device("cpu")


class CountingLayer:
    """Implements ExpertLayer without weights: reading waits until `may_read`, and then fails or not."""

    def __init__(self, number: int, loads: Sequence[int] = (1, 2), *, fails: bool = False) -> None:
        self.number, self.table, self.may_read = number, np.zeros((1, 2)), threading.Event()
        self._loads, self._fails = np.array(loads), fails

    def take_loads(self) -> IntArray:
        taken, self._loads = self._loads, np.zeros_like(self._loads)
        return taken

    def prepare(self, table: IntArray) -> Callable[[], None]:
        assert self.may_read.wait(60)
        if self._fails:
            raise CheckpointError("the disk is gone")

        def switch() -> None:
            self.table = table

        return switch


def _alone(*layers: CountingLayer) -> LiveExperts:
    return LiveExperts(layers, SingleRank(), Sharing().shard, CPU)


def _answer_once_read(experts: LiveExperts) -> State:
    while True:
        state = State(int(experts.apply(order(Order.ASK))[0]))
        if state is not State.READING:
            return state


def test_an_expert_is_read_beside_the_rounds_and_used_from_the_switch_on() -> None:
    layer, other = CountingLayer(4), CountingLayer(5)
    experts, table = _alone(layer, other), np.array([[1, 0]])

    assert not len(experts.apply(prepare(4, table)))
    assert experts.apply(order(Order.ASK)).tolist() == [State.READING]
    layer.may_read.set()
    assert _answer_once_read(experts) is State.READY
    assert not layer.table.any()
    experts.apply(order(Order.SWITCH))

    assert layer.table.tolist() == [[1, 0]]
    assert not other.table.any()
    assert experts.held_up.seconds > 0


def test_a_failure_to_read_is_answered_and_said(caplog: pytest.LogCaptureFixture) -> None:
    layer = CountingLayer(4, fails=True)
    layer.may_read.set()
    experts = _alone(layer)
    experts.apply(prepare(4, np.array([[1, 0]])))

    assert _answer_once_read(experts) is State.FAILED
    assert "experts of layer 4 could not be read" in caplog.text


def test_a_stage_that_has_no_such_layer_says_nothing() -> None:
    experts = _alone(CountingLayer(4))
    experts.apply(prepare(9, np.array([[1, 0]])))

    assert not len(experts.apply(order(Order.ASK)))
    experts.apply(order(Order.SWITCH))


@pytest.mark.parametrize(("data", "tensor"), [(1, 2), (2, 1), (2, 2)])
def test_the_first_rank_reports_what_all_data_groups_chose_once(data: int, tensor: int) -> None:
    parallel = ParallelConfig(data_parallel_size=data, tensor_parallel_size=tensor, expert_parallel_size=data * tensor)
    sharings = all_sharings(ModelConfig.load(resolve_model("scout")), parallel)

    def report(sharing: Sharing) -> list[int]:
        group = sharing.shard.data
        layers = [CountingLayer(3, (1 + group, 10)), CountingLayer(7, (0, 5 * group))]
        experts = LiveExperts(layers, sharing.stage, sharing.shard, CPU)
        return experts.apply(order(Order.REPORT)).tolist()

    first, *others = on_all_ranks(sharings, report)
    close_all(sharings)
    assert first == ([3, 1, 10, 7, 0, 0] if data == 1 else [3, 3, 20, 7, 0, 5])
    assert not any(others)
