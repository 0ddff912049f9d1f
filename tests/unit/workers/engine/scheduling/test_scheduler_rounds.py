"""What goes into a round: chunks, the budget and its shares, lanes, drafts and their limits."""

from random import Random

import numpy as np
import pytest
from unit.workers.engine.scheduling.replica_twin import ReplicaTwin
from unit.workers.engine.scheduling.toy_model import request

from outrider.workers.engine.scheduling.scheduler import SchedulerConfig
from outrider.workers.types.rounds.round import Round


def twin(depth: int = 0, **settings: object) -> ReplicaTwin:
    values = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "block_size": 4,
        "num_blocks": 200,
        "max_model_len": 100,
        "speculation": "auto",
        **settings,
    }
    return ReplicaTwin(SchedulerConfig(**values), depth)  # type: ignore[arg-type]


def step(replica: ReplicaTwin, lane: int = 0) -> Round:
    """Finishes the lane's round, if one is in flight, and starts the next."""
    if lane in replica.in_flight:
        replica.finish(lane, Random(0))
    return replica.start(lane)


def rows_of(round: Round) -> dict[int, int]:
    return dict(zip(round.sequence_ids.tolist(), np.diff(round.query_offsets).tolist(), strict=True))


def prompt(length: int, first: int = 1) -> list[int]:
    return [1 + (first + i * i) % 4 for i in range(length)]


def decoding(replica: ReplicaTwin, sequences: int) -> None:
    """Sequences that have computed their prompts and never meet an end of sequence."""
    for index in range(sequences):
        replica.add(request(f"decode {index}", prompt(2, index), max_tokens=90, seed=index, ignore_eos=True))
    while rows_of(step(replica)) != dict.fromkeys(range(sequences), 1):
        pass


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_and_sampled_at_its_end() -> None:
    replica = twin(max_num_batched_tokens=8)
    replica.add(request("long", prompt(20)))

    rounds = [step(replica) for _ in range(4)]

    assert [rows_of(round)[0] for round in rounds] == [8, 8, 4, 1]
    assert [round.sample_counts.tolist() for round in rounds] == [[0], [0], [1], [1]]
    assert [round.next_token_ids.tolist() for round in rounds[:3]] == [[prompt(20)[8]], [prompt(20)[16]], [0]]


def test_a_long_prompt_does_not_hold_up_decoding() -> None:
    replica = twin(max_num_batched_tokens=8)
    decoding(replica, 4)
    replica.add(request("long", prompt(40)))

    rounds = [step(replica) for _ in range(8)]

    assert all(rows_of(round) == {0: 1, 1: 1, 2: 1, 3: 1, 4: 4} for round in rounds)


def test_decoding_that_could_fill_the_budget_leaves_a_quarter_to_a_prompt() -> None:
    replica = twin(max_num_batched_tokens=8)
    decoding(replica, 8)
    replica.add(request("late", prompt(10)))

    rounds = [rows_of(step(replica)) for _ in range(4)]

    assert [rows.get(8) for rows in rounds] == [2, 2, 2, 2]
    assert all(sum(rows.values()) == 8 for rows in rounds)
    assert all(sum(index in rows for rows in rounds) >= 2 for index in range(8)), "decodes take turns"


def test_with_one_token_a_round_decoding_and_a_prompt_both_advance() -> None:
    replica = twin(max_num_batched_tokens=1)
    decoding_request = request("decode", prompt(1), max_tokens=90, ignore_eos=True)
    replica.add(decoding_request)
    step(replica)
    replica.add(request("late", prompt(8)))

    rounds = [rows_of(step(replica)) for _ in range(16)]

    assert sum(1 in rows for rows in rounds) == 4
    assert sum(0 in rows for rows in rounds) == 12


def test_a_budget_smaller_than_the_decoding_sequences_is_shared_in_turn() -> None:
    replica = twin(max_num_batched_tokens=3)
    for index in range(7):
        replica.add(request(f"r{index}", prompt(1, index), max_tokens=90, seed=index, ignore_eos=True))
    replica.run(20)

    rounds = [rows_of(step(replica)) for _ in range(7)]

    assert all(sum(rows.values()) == 3 for rows in rounds)
    assert [sum(index in rows for rows in rounds) for index in range(7)] == [3] * 7


def test_what_prompts_cannot_use_of_their_share_goes_to_decoding() -> None:
    replica = twin(max_num_batched_tokens=8, num_blocks=32)
    decoding(replica, 8)
    replica.add(request("too large for now", prompt(60)))

    assert sum(rows_of(step(replica)).values()) == 8


def test_two_lanes_share_the_sequences() -> None:
    replica = twin(lanes=2)
    for index in range(7):
        replica.add(request(f"r{index}", prompt(3, index), max_tokens=50, seed=index, ignore_eos=True))

    first, second = step(replica, 0), step(replica, 1)

    assert (first.sequences, second.sequences) == (4, 3)
    for lane in (0, 1, 0, 1):
        assert step(replica, lane).sequences in (3, 4)
    assert sum(round.sequences for round in replica.in_flight.values()) == 7


def test_a_lone_sequence_leaves_the_other_lane_an_empty_round() -> None:
    replica = twin(lanes=2)
    replica.add(request("alone", prompt(3)))

    assert step(replica, 0).sequences == 1
    assert step(replica, 1).sequences == 0
    assert replica.scheduler.idle(1)
    assert not replica.scheduler.idle(0)


def test_a_lane_whose_round_is_not_committed_is_refused() -> None:
    replica = twin()
    replica.add(request("r", prompt(3)))
    step(replica)

    with pytest.raises(RuntimeError, match="lane 0 still has round 0 in flight"):
        replica.scheduler.schedule(0)


def test_drafts_are_verified_by_the_next_round() -> None:
    replica = twin(depth=3)
    replica.add(request("r", prompt(5), max_tokens=40, ignore_eos=True))

    first, second = step(replica), step(replica)

    assert first.draft_steps.tolist() == [3]
    assert (rows_of(second)[0], second.sample_counts.tolist()) == (4, [4])


@pytest.mark.parametrize(
    ("engine", "asked", "steps"),
    [("auto", None, 5), ("auto", 2, 2), (3, None, 3), (3, "auto", 3), (3, 1, 1), ("auto", "off", 0), ("off", None, 0)],
)
def test_the_engine_and_the_request_bound_the_drafts(engine: str | int, asked: str | int | None, steps: int) -> None:
    replica = twin(depth=5, speculation=engine)
    replica.add(request("r", prompt(5), max_tokens=40, speculation=asked))

    round = step(replica)

    assert round.draft_steps.tolist() == [steps]
    assert round.follows.tolist() == [1 if steps else 0]


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 11, None])
def test_drafts_stop_where_the_sequence_must(depth: int, max_tokens: int | None) -> None:
    replica = twin(depth=depth, max_model_len=24)
    replica.add(request("r", prompt(9), max_tokens=max_tokens, ignore_eos=True))

    rounds = replica.run(40)

    limit = 24 if max_tokens is None else min(24, 9 + max_tokens)
    for round in rounds[:-1]:
        length = int(round.starts[0]) + 1 if round.sample_counts[0] > 1 else 9
        assert length + round.sample_counts[0] <= limit, "more rows than tokens that may still come"
    replica.check_texts()


def test_drafts_never_exceed_what_a_round_can_verify() -> None:
    replica = twin(depth=9, max_num_batched_tokens=4)
    replica.add(request("r", prompt(3), max_tokens=40))

    assert step(replica).draft_steps.tolist() == [3]


def test_the_sampler_meets_a_sequence_once_and_is_told_once_that_it_ended() -> None:
    replica = twin()
    for index in range(3):
        replica.add(request(f"r{index}", prompt(3, index), max_tokens=2 + index, seed=index, ignore_eos=True))

    rounds = replica.run(30)

    assert [start.sequence_id for round in rounds for start in round.begins] == [0, 1, 2]
    assert replica.forgotten == [0, 1]
    replica.add(request("later", prompt(3), max_tokens=1))
    assert step(replica).ends.tolist() == [2]


@pytest.mark.parametrize(("settings", "sharing"), [({}, 5), ({"max_num_seqs": 4}, 4), ({"lanes": 2}, 3)])
def test_it_tells_how_many_sequences_will_share_a_lanes_rounds(settings: dict[str, object], sharing: int) -> None:
    replica = twin(**settings)  # type: ignore[arg-type]
    for number in range(5):
        replica.add(request(f"request {number}", prompt(4)))

    step(replica)

    assert replica.planner.together[0] == sharing
