"""What carries a group's collectives is what was faster on its slowest rank, and all ranks agree on it."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch
from patience import AT_ONCE_S
from sharded import all_sharings, close_all
from torch import Tensor

from outrider.workers.config import ParallelConfig, resolve_model
from outrider.workers.parallel.collectives.collectives import Collectives, ExchangeBrokenError
from outrider.workers.parallel.collectives.group_rendezvous import fastest
from outrider.workers.parallel.collectives.shared_collectives import SharedCollectives
from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.types.model.model_config import ModelConfig

SCOUT = ModelConfig.load(resolve_model("scout"))
RANKS = 2
T = TypeVar("T")


class Slow:
    """Another carrier, late on rank 1 only, as its own clock says."""

    name = "slow"

    def __init__(self, group: Collectives) -> None:
        self._group, self.rank, self.size = group, group.rank, group.size
        self.closed = False

    @property
    def traffic(self) -> dict[str, Traffic]:
        late = 10.0 if self.rank else 0.0
        return {purpose: each + Traffic(0, 0, late * each.count) for purpose, each in self._group.traffic.items()}

    def gather(self, part: Tensor, purpose: str, root: int | None = None) -> Tensor:
        return self._group.gather(part, purpose, root)

    def exchange(self, sent: Tensor, sent_rows: Sequence[int], received_rows: Sequence[int], purpose: str) -> Tensor:
        return self._group.exchange(sent, sent_rows, received_rows, purpose)

    def close(self) -> None:
        self.closed = True


Carriers = tuple[list[Collectives], list[Collectives]]


@contextmanager
def two_carriers(**changes: float) -> Iterator[Carriers]:
    """Of one group, by rank."""
    first, second = (all_sharings(SCOUT, ParallelConfig(tensor_parallel_size=RANKS), **changes) for _ in range(2))
    yield [sharing.tensor for sharing in first], [sharing.tensor for sharing in second]
    for each in (first, second):
        close_all(each)


@pytest.fixture
def groups() -> Iterator[Carriers]:
    with two_carriers() as both:
        yield both


@pytest.fixture
def hasty() -> Iterator[Carriers]:
    """They wait for a second only."""
    with two_carriers(timeout_s=1.0) as both:
        yield both


def together(work: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(work, range(RANKS)))


@pytest.mark.parametrize("slow_first", [True, False])
def test_all_ranks_go_on_with_what_is_faster_on_the_slowest_of_them(
    groups: Carriers, slow_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    quick, slow = groups[0], [Slow(group) for group in groups[1]]

    def choose(rank: int) -> Collectives:
        candidates: list[Collectives] = [quick[rank], slow[rank]]
        return fastest(candidates[::-1] if slow_first else candidates, "ranks 0..1")

    with caplog.at_level(logging.INFO, "outrider.links"):
        assert together(choose) == quick

    assert all(each.closed for each in slow)
    assert "ranks 0..1 exchange over shared memory (tried: " in caplog.text
    found = together(lambda rank: quick[rank].gather(torch.tensor([rank]), "latents"))
    assert all(each.flatten().tolist() == [0, 1] for each in found), "what was chosen still works"


def test_what_can_be_had_in_one_way_only_is_not_tried(groups: Carriers) -> None:
    only = groups[0][0]

    assert fastest([only], "ranks 0..1") is only
    assert not only.traffic


def test_a_rank_that_does_not_come_to_the_trial_is_named(hasty: Carriers) -> None:
    began = time.monotonic()
    first, second = hasty
    assert isinstance(first[0], SharedCollectives)

    with pytest.raises(ExchangeBrokenError, match="rank 1 is gone or late: waiting for its part of the trial"):
        fastest([first[0], second[0]], "ranks 0..1")
    assert time.monotonic() - began < AT_ONCE_S
