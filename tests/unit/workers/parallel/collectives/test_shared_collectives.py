"""What ranks give one another through shared memory arrives whole, and who does not take part is named in time."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch
from patience import AT_ONCE_S
from sharded import all_sharings, close_all

from outrider.workers.config import ParallelConfig, resolve_model
from outrider.workers.parallel.collectives.collectives import Collectives, ExchangeBrokenError, total_traffic
from outrider.workers.types.model.model_config import ModelConfig

SCOUT = ModelConfig.load(resolve_model("scout"))
RANKS = 4
T = TypeVar("T")


@contextmanager
def some_ranks(**changes: float) -> Iterator[list[Collectives]]:
    sharings = all_sharings(SCOUT, ParallelConfig(tensor_parallel_size=RANKS), **changes)
    yield [sharing.tensor for sharing in sharings]
    close_all(sharings)


@pytest.fixture
def ranks() -> Iterator[list[Collectives]]:
    with some_ranks() as ranks:
        yield ranks


@pytest.fixture
def hasty() -> Iterator[list[Collectives]]:
    """Ranks that wait for half a second only."""
    with some_ranks(timeout_s=0.5) as ranks:
        yield ranks


def together(ranks: list[Collectives], work: Callable[[Collectives], T]) -> list[T]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(work, ranks))


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (700, 1000)])  # the last is more than goes at one time
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_everybody_gets_every_part_by_rank(
    ranks: list[Collectives], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    parts = [(torch.arange(shape[0] * shape[1]).view(shape) * (rank + 1) % 97).to(dtype) for rank in range(RANKS)]

    for _ in range(3):
        found = together(ranks, lambda group: group.gather(parts[group.rank], "heads"))
        assert all(torch.equal(each, torch.stack(parts)) for each in found)


def test_only_the_root_gets_what_is_gathered_for_it(ranks: list[Collectives]) -> None:
    parts = [torch.full((2,), float(rank)) for rank in range(RANKS)]

    def work(group: Collectives) -> list[torch.Tensor]:
        return [group.gather(parts[group.rank] + turn, "logits", root=turn % RANKS) for turn in range(9)]

    for rank, turns in enumerate(together(ranks, work)):
        for turn, found in enumerate(turns):
            expected = torch.stack(parts) + turn if rank == turn % RANKS else torch.empty(0, 2)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("width", [3, 60_000])  # the second takes several pieces
def test_parts_of_uneven_and_of_no_rows_reach_whom_they_are_for(ranks: list[Collectives], width: int) -> None:
    rows = [[(sender * 2 + receiver) % 3 * (sender != 1) for receiver in range(RANKS)] for sender in range(RANKS)]
    rows[3] = [0, 9, 0, 1]

    def give(sender: int, receiver: int) -> torch.Tensor:
        count = rows[sender][receiver]
        return torch.arange(count * width).view(count, width).float() + 1000 * sender + 100 * receiver

    def work(group: Collectives) -> torch.Tensor:
        sent = torch.cat([give(group.rank, receiver) for receiver in range(RANKS)])
        return group.exchange(sent, rows[group.rank], [row[group.rank] for row in rows], "rows to experts")

    for _ in range(2):
        for receiver, found in enumerate(together(ranks, work)):
            assert torch.equal(found, torch.cat([give(sender, receiver) for sender in range(RANKS)]))


def test_rows_in_fp8_travel_as_bytes(ranks: list[Collectives]) -> None:
    rows = torch.linspace(-400, 400, 3 * RANKS).to(torch.float8_e4m3fn).view(RANKS, 3)

    found = together(ranks, lambda group: group.exchange(rows, [1] * RANKS, [1] * RANKS, "rows to experts"))

    for rank, each in enumerate(found):
        assert each.dtype == torch.float8_e4m3fn
        assert torch.equal(each.float(), rows[rank].float().expand(RANKS, -1))


def test_what_is_added_up_has_the_same_bits_on_all_ranks(ranks: list[Collectives]) -> None:
    parts = [torch.randn(3, 7, generator=torch.Generator().manual_seed(rank)) for rank in range(RANKS)]

    found = together(ranks, lambda group: group.add(parts[group.rank], "layer outputs"))

    assert torch.allclose(found[0], torch.stack(parts).double().sum(dim=0).float(), atol=1e-6)
    assert all(torch.equal(each, found[0]) for each in found)


def test_a_rank_that_does_not_come_is_named_by_the_deadline(hasty: list[Collectives]) -> None:
    began = time.monotonic()

    def work(group: Collectives) -> str:
        with pytest.raises(ExchangeBrokenError) as caught:
            group.gather(torch.ones(1), "latents")
        return str(caught.value)

    for message in together(hasty[:2], work):
        assert message.startswith("rank 2 is gone or late: waiting for its part of the latents")
    assert 0.4 < time.monotonic() - began < AT_ONCE_S


def test_a_rank_that_leaves_is_known_at_once(ranks: list[Collectives]) -> None:
    for group in ranks[1:]:
        group.close()

    with pytest.raises(ExchangeBrokenError, match=r"rank 1 is gone or late: .* closed the connection"):
        ranks[0].gather(torch.ones(1), "latents")


def test_traffic_is_counted_by_purpose(ranks: list[Collectives]) -> None:
    together(ranks, lambda group: group.gather(torch.ones(10), "heads"))
    together(ranks, lambda group: group.gather(torch.ones(5), "heads"))
    together(ranks, lambda group: group.exchange(torch.ones(4, 2), [1] * 4, [1] * 4, "expert outputs"))

    traffic = total_traffic([ranks[0]])
    assert {purpose: (each.count, each.bytes) for purpose, each in traffic.items()} == {
        "heads": (2, 60),
        "expert outputs": (1, 24),  # what stays is not given
    }
    assert all(each.seconds > 0 for each in traffic.values())
