"""Teams of threads: what they compute is there when a call returns, and no call waits for ever."""

import gc
import random
import threading

import psutil
import pytest
import torch
from torch import Tensor

from outrider.kernels.cpu.context import Context
from outrider.kernels.cpu.library import FLOAT32, LinearStruct
from outrider.kernels.cpu.packing import Arena, packed

CALLS = 1500


@pytest.fixture(scope="module")
def arena() -> Arena:
    return Arena()


@pytest.fixture(scope="module")
def small(arena: Arena) -> tuple[LinearStruct, Tensor, Tensor]:
    """A product that is over in microseconds, its input, and what it gives."""
    linear, x = packed(arena, torch.randn(128, 40), FLOAT32), torch.randn(2, 40)
    return linear, x, Context(1).linear(linear, x)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("shared_cores", [False, True], ids=["spinning", "sleeping"])
def test_thousands_of_calls_at_any_moment_all_return(
    threads: int, shared_cores: bool, small: tuple[LinearStruct, Tensor, Tensor]
) -> None:
    """Helpers that are just going to sleep are woken too."""
    linear, x, wanted = small
    context, draw = Context(threads, shared_cores), random.Random(threads)

    for _ in range(CALLS):
        assert torch.equal(context.linear(linear, x), wanted)
        for _ in range(draw.choice([0, 0, 20, 200])):  # a pause that Python makes
            pass


def test_teams_of_several_callers_share_the_cores(small: tuple[LinearStruct, Tensor, Tensor]) -> None:
    linear, x, wanted = small
    wrong: list[int] = []

    def call(number: int) -> None:
        context = Context(3, shared_cores=True)
        wrong.extend(number for _ in range(300) if not torch.equal(context.linear(linear, x), wanted))

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert wrong == []


def test_a_team_ends_with_its_context() -> None:
    """Those that slept and those that never ran as well."""
    gc.collect()
    before = threads_of_this_process()

    for count in range(1, 6):
        context = Context(count)
        assert threads_of_this_process() == before + count - 1
        context.close()
        context.close()

    assert threads_of_this_process() == before


def threads_of_this_process() -> int:
    return int(psutil.Process().num_threads())
