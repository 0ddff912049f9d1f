"""Drafts of several data groups on their way to the leader."""

from typing import cast

import pytest
import torch
from torch import Tensor

from outrider.workers.drafting.shared_drafts import SharedDrafts
from outrider.workers.parallel.collectives.collectives import Collectives
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round, ints

ROUND = Round(sequence_ids=ints([4, 5, 6]), owners=ints([0, 1, 1]))
DEPTHS = {4: 2, 5: 3, 6: 2}
MADE = [{4: Drafts([7], [0.5])}, {5: Drafts([8, 0], [1.5, 0.25]), 6: Drafts([9, 3], [2.0, 0.125])}]


class Gathering:
    """In place of the stage's group: keeps what each rank gives, and hands it to the leader, who comes last."""

    def __init__(self, rank: int, given: dict[int, Tensor]) -> None:
        self.rank, self._given = rank, given

    def gather(self, mine: Tensor, purpose: str, root: int) -> Tensor:
        self._given[self.rank] = mine
        return torch.stack([self._given[rank] for rank in sorted(self._given)])


@pytest.mark.parametrize("made", [MADE, [{}, {}]], ids=["some", "none"])
def test_the_leader_has_the_drafts_that_were_made_though_fewer_than_might_have_been(
    made: list[dict[int, Drafts]],
) -> None:
    given: dict[int, Tensor] = {}
    for rank in (1, 0):
        stage = cast(Collectives, Gathering(rank, given))
        shared = SharedDrafts(stage, Shard(data=rank, datas=2), torch.device("cpu"))
        found = shared.collect(ROUND, DEPTHS, made[rank])

    assert found == dict.fromkeys((4, 5, 6), Drafts([], [])) | made[0] | made[1]
