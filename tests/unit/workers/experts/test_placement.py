import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.experts.placement import ExpertPlacement

PLACEMENT = ExpertPlacement(np.array([[[0, 1], [0, 2], [3, 0]]]), num_experts=4)


def test_an_experts_copies_take_turns_by_the_tokens_position() -> None:
    slots = PLACEMENT.route(0, np.array([[0, 3]] * 4), np.arange(4))

    assert slots.tolist() == [[0, 4], [2, 4], [5, 4], [0, 4]]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000)), min_size=1, max_size=20))
def test_a_tokens_slot_holds_its_expert_and_does_not_depend_on_companions(tokens: list[tuple[int, int]]) -> None:
    experts, positions = (np.array(values) for values in zip(*tokens, strict=True))

    together = PLACEMENT.route(0, experts[:, None], positions)

    alone = [PLACEMENT.route(0, np.array([[e]]), np.array([p])).item() for e, p in tokens]
    assert together[:, 0].tolist() == alone
    assert PLACEMENT.experts.reshape(-1)[together[:, 0]].tolist() == experts.tolist()


def test_only_what_a_rank_did_not_hold_is_a_move() -> None:
    after = ExpertPlacement(np.array([[[1, 0], [2, 0], [3, 1]]]), num_experts=4)

    assert after.moves_from(PLACEMENT) == 1  # expert 1 on the last rank


@pytest.mark.parametrize(
    ("experts", "named"),
    [
        ([[[0, 0], [1, 2]]], "two copies"),
        ([[[0, 1], [1, 0]]], "expert 2 of layer 0"),
        ([[[0, 9]]], "0..2"),
        ([0], "0..2"),
    ],
)
def test_a_placement_that_cannot_serve_is_refused(experts: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ExpertPlacement(np.array(experts), num_experts=3)
