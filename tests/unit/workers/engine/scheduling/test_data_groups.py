"""Sequences are spread over data groups by their tokens; each group has blocks of its own, and its share of a round."""

from random import Random

import numpy as np
import pytest
from unit.workers.engine.scheduling.test_scheduler_residents import prompt, step, twin
from unit.workers.engine.scheduling.toy_model import request

from outrider.workers.types.rounds.round import RUNNING, Round, Verdict, ints, share_of, verdict_for


def test_a_sequence_goes_where_the_fewest_tokens_are() -> None:
    replica = twin(data_groups=2)
    for name, length in (("long", 30), ("short", 5), ("next", 9), ("last", 9)):
        replica.add(request(name, prompt(length, first=length), max_tokens=3, ignore_eos=True))

    round = step(replica)

    assert round.owners.tolist() == [0, 1, 1, 1]  # 30 against 5, 14 and 23


def test_a_prompt_that_a_group_has_cached_goes_there_though_it_has_more_to_do() -> None:
    replica = twin(data_groups=2)
    replica.add(request("first", prompt(20), max_tokens=1))
    replica.run(3)
    replica.add(request("other", prompt(6, first=2), max_tokens=9, ignore_eos=True))
    step(replica)
    replica.add(request("again", [*prompt(20), 3], max_tokens=1))

    round = step(replica)

    owners = dict(zip(round.sequence_ids.tolist(), round.owners.tolist(), strict=True))
    assert owners[2] == 0
    assert round.starts[round.sequence_ids.tolist().index(2)] > 0


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("lanes", [1, 2])
def test_texts_are_right_and_no_block_is_lost_in_a_crowd(groups: int, lanes: int) -> None:
    replica, random = twin(depth=3, data_groups=groups, lanes=lanes, num_blocks=14, max_model_len=40), Random(groups)
    for number in range(24):
        length = random.randrange(1, 20)
        replica.add(request(f"r{number}", prompt(length, first=number % 5), max_tokens=random.randrange(1, 15), n=2))
    rounds = replica.run(2000)

    replica.check_texts()
    replica.check_pool()
    assert {owner for round in rounds for owner in round.owners.tolist()} == set(range(groups))


def _round(owners: list[int]) -> Round:
    lengths = [3, 1, 2, 4][: len(owners)]
    return Round(
        sequence_ids=ints(np.arange(len(owners)) + 10),
        query_offsets=ints(np.cumsum([0, *lengths])),
        token_ids=ints(np.arange(sum(lengths))),
        starts=ints(np.arange(len(owners)) * 5),
        write_from=ints(np.arange(len(owners))),
        sample_counts=ints([1] * len(owners)),
        score_counts=ints([0] * len(owners)),
        next_token_ids=ints([0] * len(owners)),
        block_offsets=ints(np.arange(len(owners) + 1) * 2),
        block_ids=ints(np.arange(2 * len(owners))),
        owners=ints(owners),
        draft_steps=ints(np.arange(len(owners))),
        follows=ints([1] * len(owners)),
        followed_from=ints([1] * len(owners)),
    )


def test_a_groups_share_of_a_round_is_its_own_sequences_alone() -> None:
    own = share_of(_round([0, 1, 0, 1]), 1)

    assert own.sequence_ids.tolist() == [11, 13]
    assert own.token_ids.tolist() == [3, 6, 7, 8, 9]
    assert own.query_offsets.tolist() == [0, 1, 5]
    assert (own.starts.tolist(), own.draft_steps.tolist()) == ([5, 15], [1, 3])
    assert own.block_ids.tolist() == [2, 3, 6, 7]


def test_an_idle_groups_share_is_an_empty_round() -> None:
    own = share_of(_round([0, 0]), 1)

    assert (own.sequences, own.rows, own.query_offsets.tolist()) == (0, 0, [0])


def test_a_verdict_is_shared_out_as_its_round_is() -> None:
    round = _round([0, 1, 0, 1])
    verdict = Verdict(
        token_offsets=ints([0, 2, 2, 3, 6]),
        token_ids=ints([1, 2, 3, 4, 5, 6]),
        accepted_rows=ints([3, 1, 2, 4]),
        drafts_accepted=ints([1, 0, 0, 2]),
        finish=ints([RUNNING] * 4),
    )

    own = verdict_for(round, verdict, 1)

    assert (own.token_offsets.tolist(), own.token_ids.tolist()) == ([0, 0, 3], [4, 5, 6])
    assert (own.accepted_rows.tolist(), own.drafts_accepted.tolist()) == ([1, 4], [0, 2])
