"""Who holds blocks: the prefix cache, n outputs, admission, shortage and preemption."""

import dataclasses
from random import Random

import numpy as np
import pytest
from unit.workers.engine.scheduling.replica_twin import ReplicaTwin
from unit.workers.engine.scheduling.toy_model import request

from outrider.workers.engine.scheduling.scheduler import SchedulerConfig
from outrider.workers.types.requests.request import OutputSoFar
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


def step(replica: ReplicaTwin) -> Round:
    if 0 in replica.in_flight:
        replica.finish(0, Random(0))
    return replica.start(0)


def blocks_of(round: Round, index: int) -> list[int]:
    return round.block_ids[round.block_offsets[index] : round.block_offsets[index + 1]].tolist()


def prompt(length: int, first: int = 1) -> list[int]:
    return [1 + (first + i * i) % 4 for i in range(length)]


def test_a_shared_beginning_is_not_computed_again() -> None:
    replica = twin()
    replica.add(request("first", prompt(10), max_tokens=1))
    first = step(replica)
    replica.run(2)
    replica.add(request("second", [*prompt(10), 2, 3], max_tokens=1))

    second = step(replica)

    assert blocks_of(second, 0)[:2] == blocks_of(first, 0)[:2]
    assert (second.starts.tolist(), second.write_from.tolist(), second.rows) == ([7], [8], 5)
    replica.run(2)
    assert replica.outputs["second", 0].chunks[0].cached_tokens == 8
    assert (replica.scheduler.counters.prefix_queries, replica.scheduler.counters.prefix_hits) == (22, 8)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_beginning_is_shared_by_requests_with_an_equal_salt_only(depth: int) -> None:
    replica = twin(depth)
    cached = []
    for number, salt in enumerate(("", "a", "b", "a", "")):
        name = str(number)
        replica.add(dataclasses.replace(request(name, prompt(20), max_tokens=1), cache_salt=salt))
        replica.run(8)
        cached.append(replica.outputs[name, 0].chunks[0].cached_tokens)

    assert [tokens > 0 for tokens in cached] == [False, False, False, True, True]


def test_a_drafter_of_several_modules_has_as_many_tokens_computed_again_in_any_chunks() -> None:
    replica = twin(recomputed_tokens=3, max_num_batched_tokens=2)
    replica.add(request("first", prompt(10), max_tokens=1))
    replica.run(6)
    replica.add(request("second", [*prompt(10), 2, 3], max_tokens=1))
    replica.add(request("does not draft", [*prompt(10), 2, 3], max_tokens=1, speculation="off"))

    rounds = [step(replica) for _ in range(4)]

    assert [round.starts.tolist() for round in rounds] == [[5], [7], [9], [11, 0]]
    assert [round.write_from.tolist()[0] for round in rounds] == [8, 8, 9, 11]
    replica.run(20)
    replica.check_texts()
    replica.check_pool()


def test_a_prompt_that_is_wholly_cached_computes_its_last_token_and_samples_it() -> None:
    replica = twin()
    replica.add(request("first", prompt(8), max_tokens=2, ignore_eos=True))
    replica.run(5)
    replica.add(request("again", prompt(8), max_tokens=2, ignore_eos=True))

    round = step(replica)

    assert (round.starts.tolist(), round.write_from.tolist(), round.rows) == ([7], [8], 1)
    assert round.sample_counts.tolist() == [1]
    replica.run(5)
    replica.check_texts()


def test_generated_tokens_are_cached_too() -> None:
    replica = twin(depth=3)
    replica.add(request("first", prompt(6), max_tokens=11, ignore_eos=True))
    replica.run(20)
    conversation = prompt(6) + replica.outputs["first", 0].token_ids
    replica.add(request("second turn", [*conversation, 1], max_tokens=1))

    assert step(replica).write_from.tolist() == [16]


def test_sequences_with_and_without_a_drafter_share_no_blocks() -> None:
    replica = twin()
    replica.add(request("drafts", prompt(8), max_tokens=1))
    replica.run(2)
    replica.add(request("does not", prompt(8), max_tokens=1, speculation="off"))

    assert step(replica).write_from.tolist() == [0]


@pytest.mark.parametrize(("first", "second", "cached"), [("followed", "let go", 8), ("let go", "followed", 0)])
def test_what_the_drafter_followed_serves_one_that_it_lets_go_too(first: str, second: str, cached: int) -> None:
    """While speculation is stopped nobody is followed: prefixes from before serve, and those made then do not after."""
    replica = twin()
    replica.planner.ignore({number for number, how in enumerate((first, second)) if how == "let go"})
    replica.add(request("first", prompt(10), max_tokens=1))
    replica.run(2)
    replica.add(request("second", [*prompt(10), 2, 3], max_tokens=1))

    assert step(replica).write_from.tolist() == [cached]


def test_a_drafter_that_lost_a_round_begins_anew_and_what_follows_is_nobody_elses_prefix() -> None:
    replica = twin()
    replica.add(request("first", prompt(6), max_tokens=11, ignore_eos=True))
    replica.run(2)
    replica.scheduler.unfollow()
    after = step(replica)
    replica.run(20)
    replica.add(request("second turn", [*prompt(6), *replica.outputs["first", 0].token_ids, 1], max_tokens=1))

    assert after.followed_from.tolist() == [after.starts[0] + 1]
    assert step(replica).write_from.tolist() == [4]  # of what was there before


def test_nothing_is_shared_with_the_prefix_cache_off() -> None:
    replica = twin(enable_prefix_caching=False)
    for name in ("first", "second"):
        replica.add(request(name, prompt(8), max_tokens=1))
        assert step(replica).write_from.tolist() == [0]
        replica.run(2)


def test_later_outputs_wait_for_the_first_to_compute_the_prompt_and_share_it() -> None:
    replica = twin(max_num_batched_tokens=8)
    replica.add(request("three", prompt(13), n=3, max_tokens=6, ignore_eos=True))

    rounds = [step(replica) for _ in range(3)]

    assert [round.sequence_ids.tolist() for round in rounds] == [[0], [0], [0, 1, 2]]
    assert blocks_of(rounds[2], 0)[:3] == blocks_of(rounds[2], 1)[:3] == blocks_of(rounds[2], 2)[:3]
    assert len({blocks_of(rounds[2], index)[3] for index in range(3)}) == 3
    replica.run(20)
    replica.check_texts()


@pytest.mark.parametrize(("length", "caching"), [(3, True), (13, False)])
def test_outputs_with_nothing_to_share_start_together(length: int, caching: bool) -> None:
    replica = twin(enable_prefix_caching=caching)
    replica.add(request("three", prompt(length), n=3, max_tokens=6))

    assert step(replica).sequence_ids.tolist() == [0, 1, 2]


def test_a_request_that_could_never_fit_is_refused_with_the_numbers() -> None:
    replica = twin(num_blocks=5, max_model_len=50)

    for ask in (replica.scheduler.check, replica.scheduler.add):
        with pytest.raises(ValueError, match=r"30 tokens, 8 blocks of 4, .* holds 5: raise kv_cache_memory_bytes"):
            ask(request("large", prompt(20), max_tokens=10))
    assert not replica.scheduler.has_work


def test_the_model_length_bounds_what_a_request_may_need() -> None:
    replica = twin(num_blocks=5, max_model_len=20, enable_prefix_caching=False)
    replica.add(request("unbounded", prompt(10), max_tokens=None))

    replica.run(40)

    replica.check_texts()


def test_no_more_sequences_run_than_allowed_and_the_rest_follow_in_order() -> None:
    replica = twin(max_num_seqs=2)
    for index in range(6):
        replica.add(request(f"r{index}", prompt(3, index), max_tokens=3, seed=index, ignore_eos=True))

    begun = [[start.sequence_id for start in round.begins] for round in replica.run(30) if round.begins]

    assert begun == [[0, 1], [2, 3], [4, 5]]


def test_who_had_tokens_at_a_replica_that_was_lost_goes_on_before_those_who_wait_for_their_first() -> None:
    replica = twin(max_num_seqs=1)
    for name in ("running", "waiting", "also waiting"):
        replica.add(request(name, prompt(5), max_tokens=3, ignore_eos=True))
    step(replica)
    for name, had in (("moved", (1, 2)), ("moved later", (3,)), ("moved from the queue", ())):
        asked = request(name, prompt(5), max_tokens=4, ignore_eos=True)
        replica.add(dataclasses.replace(asked, resumed=(OutputSoFar(index=0, token_ids=had),)))

    order = [start.sequence_id for round in replica.run(60) for start in round.begins]

    assert order == [3, 4, 1, 2, 5]


def test_a_large_request_that_must_wait_is_not_overtaken() -> None:
    replica = twin(num_blocks=12)
    replica.add(request("running", prompt(20), max_tokens=20, ignore_eos=True))
    step(replica)
    replica.add(request("large", prompt(30), max_tokens=1))
    replica.add(request("small", prompt(2), max_tokens=1))

    order = [start.sequence_id for round in replica.run(60) for start in round.begins]

    assert order == [1, 2]


def test_short_of_blocks_there_are_fewer_drafts_and_nobody_is_preempted() -> None:
    replica = twin(depth=6, num_blocks=4, enable_prefix_caching=False)
    for index in range(2):
        replica.add(request(f"r{index}", prompt(2, index), max_tokens=6, seed=index, ignore_eos=True))

    rounds = replica.run(40)

    assert rounds[0].draft_steps.tolist() == [4, 4]
    assert all((round.starts >= 2).all() for round in rounds[1:] if round.sequences), "somebody began again"
    replica.check_texts()


def test_drafts_take_only_blocks_that_no_other_sequence_needs_for_its_next_token() -> None:
    replica = twin(num_blocks=4, enable_prefix_caching=False)
    for index in range(2):
        replica.add(request(f"r{index}", prompt(3, index), max_tokens=9, seed=index, ignore_eos=True))
    step(replica)
    replica.planner.set_depth(6)

    round = step(replica)

    assert (round.sequence_ids.tolist(), round.draft_steps.tolist()) == ([0, 1], [3, 3])


def test_cached_blocks_count_once_towards_the_room_for_their_reader() -> None:
    replica = twin(num_blocks=8)
    replica.add(request("first", prompt(9), max_tokens=1))
    replica.run(2)
    replica.add(request("running", [2] * 11, max_tokens=12, ignore_eos=True))
    step(replica)
    replica.add(request("reader", [*prompt(8), *[3] * 11], max_tokens=1))

    assert step(replica).sequences == 1, "5 blocks are free: 2 are its own beginning, and it needs 3 and one to spare"


def test_the_youngest_is_preempted_and_resumes_before_those_who_came_later() -> None:
    replica = twin(num_blocks=8, enable_prefix_caching=False)
    for index in range(4):
        replica.add(request(f"r{index}", prompt(5, index), max_tokens=15, seed=index, ignore_eos=True))

    rounds = replica.run(200)

    beginnings = [
        s for round in rounds for s, start in zip(round.sequence_ids.tolist(), round.starts, strict=True) if start == 0
    ]
    assert beginnings[:6] == [0, 1, 2, 1, 2, 3]
    replica.check_texts()


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    replica = twin(num_blocks=8)
    for index in range(2):
        replica.add(request(f"r{index}", prompt(5, index), max_tokens=15, seed=index, ignore_eos=True))

    rounds = replica.run(200)

    resumed = [
        int(round.write_from[index])
        for round in rounds
        for index, sequence_id in enumerate(round.sequence_ids.tolist())
        if sequence_id == 1 and round.starts[index] < round.write_from[index]
    ]
    assert len(resumed) == 1
    assert resumed[0] >= 4
    replica.check_texts()


def test_nobody_waits_forever_in_a_pool_that_holds_one_sequence() -> None:
    replica = twin(depth=2, num_blocks=5, max_model_len=20, lanes=3)
    for index in range(8):
        replica.add(request(f"r{index}", prompt(1 + index, index), max_tokens=None, seed=index, ignore_eos=True))

    replica.run(3 * 8 * 40)

    replica.check_texts()
    assert np.isclose(replica.scheduler.counters.kv_cache_usage, 0)
