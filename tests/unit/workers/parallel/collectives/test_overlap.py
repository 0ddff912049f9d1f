"""Lanes hand over at exchanges that go on by themselves on all ranks of a stage, where something is to be won."""

import pytest

from outrider.workers.parallel.collectives.overlap import AsyncExchanges, Overlap, overlap_of

NEITHER, BOTH = Overlap(), Overlap(tensor=True, stage=True)


def ranks(machines: str, tensor: bool = True, stage: bool = True) -> list[AsyncExchanges]:
    return [AsyncExchanges(machine, tensor, stage) for machine in machines]


@pytest.mark.parametrize(
    ("machines", "gpu", "enabled", "wanted"),
    [
        ("ab", False, None, BOTH),
        ("aa", False, None, NEITHER),  # they exchange by computing
        ("aa", False, True, BOTH),
        ("ab", False, False, NEITHER),
        ("aa", True, None, BOTH),
        ("aa", True, False, NEITHER),
    ],
)
def test_where_it_pays_unless_told_otherwise(machines: str, gpu: bool, enabled: bool | None, wanted: Overlap) -> None:
    assert overlap_of(ranks(machines), 2, enabled=enabled, gpu=gpu) == wanted


def test_what_ranks_carry_themselves_is_never_overlapped() -> None:
    assert overlap_of(ranks("ab", tensor=False, stage=False), 2, enabled=True, gpu=False) == NEITHER


def test_all_ranks_of_a_stage_hand_over_at_the_same_exchanges() -> None:
    one_shares_memory = [*ranks("a", tensor=False), *ranks("abb")]

    assert overlap_of(one_shares_memory, 2, enabled=True, gpu=False) == Overlap(stage=True)


def test_tensor_groups_within_machines_overlap_what_goes_between_machines_only() -> None:
    assert overlap_of(ranks("aabb"), 2, enabled=None, gpu=False) == Overlap(stage=True)
    assert overlap_of(ranks("abab"), 2, enabled=None, gpu=False) == BOTH
