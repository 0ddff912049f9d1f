"""How sequences end and what clients and counters hear of it."""

from random import Random

import numpy as np
import pytest
from fakes import FixedPlans
from unit.workers.engine.scheduling.replica_twin import ReplicaTwin
from unit.workers.engine.scheduling.toy_model import request

from outrider.workers.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from outrider.workers.types.requests.request import FinishReason, Request, TokenLogprobs
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.round import LENGTH, RUNNING, STOPPED, Round, Verdict, ints
from outrider.workers.types.rounds.round_time import RoundTiming

CONFIG = SchedulerConfig(
    max_num_seqs=8, max_num_batched_tokens=64, block_size=4, num_blocks=60, max_model_len=60, lanes=2, speculation=3
)


def scheduler(depth: int = 0) -> Scheduler:
    return Scheduler(CONFIG, FixedPlans(depth))


def verdict(round: Round, emitted: list[list[int]], finish: list[int], **logprobs: object) -> Verdict:
    """A verdict in which every emitted token but the last was a draft."""
    gained = ints([len(tokens) for tokens in emitted])
    return Verdict(
        round_id=round.round_id,
        lane=round.lane,
        token_offsets=ints(np.cumsum([0, *gained])),
        token_ids=ints([token for tokens in emitted for token in tokens]),
        accepted_rows=np.diff(round.query_offsets) - round.sample_counts + gained,
        drafts_accepted=np.maximum(gained - 1, 0),
        finish=ints(finish),
        **logprobs,  # type: ignore[arg-type]
    )


def test_a_stop_token_ends_the_sequence_and_is_named() -> None:
    engine = scheduler()
    engine.add(request("r", [1, 2]))
    round = engine.schedule(0)

    (chunk,) = engine.commit(round, verdict(round, [[7]], [STOPPED]))

    assert (chunk.token_ids, chunk.finish_reason, chunk.stop_token_id) == ((7,), FinishReason.STOP, 7)
    assert not engine.has_work
    assert engine.counters.kv_cache_usage == 0


def test_a_limit_ends_the_sequence_without_a_stop_token() -> None:
    engine = scheduler()
    engine.add(request("r", [1, 2], max_tokens=1))
    round = engine.schedule(0)

    (chunk,) = engine.commit(round, verdict(round, [[7]], [LENGTH]))

    assert (chunk.finish_reason, chunk.stop_token_id) == (FinishReason.LENGTH, None)


def test_a_chunk_of_the_prompt_says_nothing_to_the_client() -> None:
    engine = Scheduler(SchedulerConfig(**{**_fields(CONFIG), "max_num_batched_tokens": 4}))
    engine.add(request("r", [1] * 9))
    round = engine.schedule(0)

    assert engine.commit(round, verdict(round, [[]], [RUNNING])) == []


def test_acceptance_is_counted_by_position() -> None:
    engine = scheduler(depth=3)
    engine.add(request("r", [1, 2], max_tokens=50))
    round = engine.schedule(0)
    engine.commit(round, verdict(round, [[3]], [RUNNING]))
    for accepted in (3, 1, 0):
        engine.set_drafts({0: [4, 4, 4]})
        round = engine.schedule(0)
        (chunk,) = engine.commit(round, verdict(round, [[4] * (accepted + 1)], [RUNNING]))
        assert (chunk.drafted, chunk.accepted) == (3, accepted)

    counters = engine.counters
    assert (counters.rounds, counters.drafts, counters.drafted, counters.accepted) == (4, 3, 9, 4)
    assert counters.accepted_per_position[:4] == [2, 1, 1, 0]
    engine.reset_counters()
    assert (engine.counters.rounds, engine.counters.running) == (0, 1)
    assert counters.rounds == 4


def test_logprobs_go_to_those_who_asked() -> None:
    engine = scheduler()
    engine.add(request("silent", [1, 2]))
    engine.add(Request(request_id="asks", prompt_token_ids=(1, 2), params=SamplingParams(logprobs=1), seed=0))
    round = engine.schedule(0)
    other = engine.schedule(1)
    engine.commit(round, verdict(round, [[7]], [RUNNING]))

    (chunk,) = engine.commit(
        other,
        verdict(
            other,
            [[8]],
            [RUNNING],
            logprob_offsets=ints([0, 2]),
            logprob_ids=ints([8, 9]),
            logprob_ranks=ints([2, 1]),
            logprob_values=np.array([-2.0, -1.0]),
        ),
    )

    assert chunk.request_id == "asks"
    assert chunk.logprobs == (TokenLogprobs(token_ids=(8, 9), logprobs=(-2.0, -1.0), ranks=(2, 1)),)


def test_of_a_round_with_logprobs_the_others_hear_none() -> None:
    engine = Scheduler(SchedulerConfig(**{**_fields(CONFIG), "lanes": 1}))
    engine.add(request("silent", [1, 2]))
    engine.add(Request(request_id="asks", prompt_token_ids=(1, 2), params=SamplingParams(logprobs=0), seed=0))
    round = engine.schedule(0)
    logprobs = {"logprob_offsets": ints([0, 0, 1]), "logprob_ids": ints([8]), "logprob_ranks": ints([1])}

    silent, asks = engine.commit(
        round, verdict(round, [[7], [8]], [RUNNING] * 2, **logprobs, logprob_values=np.array([-0.5]))
    )

    assert silent.logprobs == ()
    assert asks.logprobs == (TokenLogprobs(token_ids=(8,), logprobs=(-0.5,), ranks=(1,)),)


def test_a_chunk_says_what_drafts_saved_beside_one_token_a_round() -> None:
    """Not of the first token, which has no round before it to compare with."""
    engine = scheduler()
    engine.add(request("one", [1, 2], max_tokens=20))
    (first,) = engine.commit(round := engine.schedule(0), verdict(round, [[7]], [RUNNING]), RoundTiming(0.004, 0.003))
    (second,) = engine.commit(round := engine.schedule(0), verdict(round, [[8]], [RUNNING]), RoundTiming(0.004, 0.003))
    (third,) = engine.commit(round := engine.schedule(0), verdict(round, [[9]], [RUNNING]))

    assert first.saved_s == third.saved_s == 0.0
    assert second.saved_s == pytest.approx(0.003 - 0.004)
    assert RoundTiming(took_s=0.004, undrafted_s=0.003).saved_s(tokens=3) == pytest.approx(0.005)


def test_a_live_request_id_is_refused_and_a_finished_one_is_not() -> None:
    replica = ReplicaTwin(CONFIG)
    replica.add(request("same", [1, 2], max_tokens=1))

    with pytest.raises(ValueError, match="request_id 'same' is already being served"):
        replica.scheduler.add(request("same", [3]))
    replica.run(10)
    replica.scheduler.add(request("same", [3]))


def test_a_waiting_request_is_cancelled_at_once_and_the_sampler_never_hears_of_it() -> None:
    engine = scheduler()
    engine.add(request("r", [1] * 9, n=2))

    chunks = engine.cancel("r")

    assert [(chunk.index, chunk.finish_reason) for chunk in chunks] == [
        (0, FinishReason.CANCELLED),
        (1, FinishReason.CANCELLED),
    ]
    assert not engine.has_work
    engine.add(request("next", [1]))
    assert engine.schedule(0).ends.tolist() == []


def test_a_request_in_flight_is_cancelled_at_its_commit_and_holds_its_blocks_until_then() -> None:
    engine = scheduler()
    engine.add(request("r", [1, 2]))
    round = engine.schedule(0)

    assert engine.cancel("r") == []
    assert engine.cancel("r") == []
    assert engine.counters.kv_cache_usage > 0
    (chunk,) = engine.commit(round, verdict(round, [[7]], [STOPPED]))

    assert (chunk.token_ids, chunk.finish_reason) == ((), FinishReason.CANCELLED)
    assert engine.counters.kv_cache_usage == 0
    assert engine.cancel("r") == []


def test_one_output_is_cancelled_and_its_siblings_go_on() -> None:
    replica = ReplicaTwin(CONFIG)
    replica.add(request("r", [1] * 9, n=3, max_tokens=8, ignore_eos=True))
    replica.start(0)
    replica.cancel("r", 0)
    replica.cancel("r", 1)

    replica.run(40)

    reasons = [replica.outputs["r", index].finish_reason for index in range(3)]
    assert reasons == [FinishReason.CANCELLED, FinishReason.CANCELLED, FinishReason.LENGTH]
    replica.check_texts()


def test_cancelling_what_is_unknown_does_nothing() -> None:
    assert scheduler().cancel("nobody") == []


def test_a_failure_ends_each_request_with_one_error_and_a_late_verdict_changes_nothing() -> None:
    engine = scheduler()
    engine.add(request("running", [1, 2], n=2))
    engine.add(request("waiting", [1] * 9, n=2))
    round = engine.schedule(0)

    chunks = engine.fail("rank 1 died")

    assert [(chunk.request_id, chunk.error) for chunk in chunks] == [
        ("running", "rank 1 died"),
        ("waiting", "rank 1 died"),
    ]
    assert engine.commit(round, verdict(round, [[7]] * round.sequences, [RUNNING] * round.sequences)) == []
    assert not engine.has_work
    assert (engine.counters.running, engine.counters.waiting, engine.counters.kv_cache_usage) == (0, 0, 0)


def test_drafts_for_a_sequence_that_ended_are_passed_over() -> None:
    replica = ReplicaTwin(CONFIG, depth=3)
    replica.add(request("r", [1, 2], max_tokens=9, ignore_eos=True))
    replica.start(0)
    replica.cancel("r")
    replica.finish(0, Random(0))

    replica.scheduler.set_drafts({0: [1, 2, 3]})

    assert replica.start(0).sequences == 0


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks", "lanes"])
def test_a_limit_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SchedulerConfig(**{**_fields(CONFIG), name: 0})


def _fields(config: SchedulerConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_what_is_not_ready_begins_with_its_release_and_that_of_what_has_ended_is_nothing() -> None:
    engine = scheduler()
    engine.add(request("r", [1, 2, 3, 4, 5], n=3), ready=False)
    assert engine.schedule(0).sequences == 0
    assert (engine.has_work, engine.counters.waiting) == (False, 3)

    engine.cancel("r", 1)
    engine.release("r")
    engine.release("never heard of")

    first = engine.schedule(0)
    assert (first.sequences, engine.counters.waiting) == (1, 1)  # the other shares its prompt
    engine.commit(first, verdict(first, [[7]], [RUNNING]))
    assert [engine.schedule(lane).sequences for lane in (0, 1)] == [1, 1]
    assert engine.refuse("never heard of", "why") == []


def test_a_request_that_is_refused_ends_with_one_error_and_is_forgotten() -> None:
    engine = scheduler()
    engine.add(request("r", [1, 2, 3, 4, 5], n=3), ready=False)

    (chunk,) = engine.refuse("r", "why")
    engine.release("r")

    assert (chunk.request_id, chunk.error, chunk.engine_lost) == ("r", "why", False)
    assert engine.schedule(0).sequences == 0
    assert (engine.counters.waiting, engine.counters.tokens) == (0, 0)
    engine.add(request("r", [1, 2]))
    assert engine.has_work
