"""A broken drafter is noticed under a fixed depth too, of which nothing else is learned."""

import random

from outrider.workers.speculation.alarms import COLLAPSE, DEAD_POSITION
from outrider.workers.speculation.depth import DepthPolicy
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.request import Request
from outrider.workers.types.round import RUNNING, Round, Verdict, ints, offsets
from outrider.workers.types.sampling_params import LOOKUP, MTP, SamplingParams
from outrider.workers.types.sequence import Sequence

DEPTH = 3


def play(policy: DepthPolicy, rounds: int, sequences: int, chances: list[float], drafter: str = MTP) -> list[str]:
    """Rounds of sequences whose drafts lead by five, and stand with these chances."""
    rng, count = random.Random(1), ints(range(sequences))
    said: list[str] = []
    params = SamplingParams(temperature=0.8)
    live = [
        Sequence(
            sequence_id=n, request=Request(request_id="", prompt_token_ids=(3,), params=params, seed=0),
            output_index=0, token_ids=[3], limit=1 << 30, draft_ceiling=16,
        )
        for n in range(sequences)
    ]  # fmt: skip
    for _ in range(rounds):
        assert [policy.depth(each) for each in live] == [DEPTH] * sequences
        policy.worthwhile({n: Drafts([5] * DEPTH, [5.0] * DEPTH, drafter) for n in range(sequences)})
        stood = [next((n for n, chance in enumerate(chances) if rng.random() > chance), DEPTH) for _ in live]
        rows, emitted = [1 + DEPTH] * sequences, [1 + accepted for accepted in stood]
        round = Round(
            sequence_ids=count, query_offsets=offsets(rows), token_ids=ints([5] * sum(rows)),
            starts=ints([9] * sequences), sample_counts=ints(rows), draft_steps=ints([DEPTH] * sequences),
            upkeep=ints([1] * sequences), followed_from=ints([1] * sequences),
        )  # fmt: skip
        verdict = Verdict(
            token_offsets=offsets(emitted), token_ids=ints([5] * sum(emitted)), accepted_rows=ints(emitted),
            drafts_accepted=ints(stood), finish=ints([RUNNING] * sequences),
        )  # fmt: skip
        policy.observe(round, verdict, 0.01, 0.001)
        said += policy.take_warnings()
    return said


def test_a_position_that_dies_is_named_and_drafts_that_stand_are_not() -> None:
    policy = DepthPolicy(DEPTH)

    assert play(policy, 1000, 4, [0.8, 0.8, 0.8]) == []
    assert any("draft 2 of mtp is never accepted" in text for text in play(policy, 1000, 4, [0.8, 0.0, 0.0]))
    assert policy.figures.alarms[DEAD_POSITION] > 0


def test_acceptance_that_falls_is_said_once() -> None:
    policy = DepthPolicy(DEPTH)
    play(policy, 2000, 1, [0.9, 0.9, 0.9])

    (said,) = play(policy, 1000, 1, [0.3, 0.3, 0.3])
    assert "accepted" in said
    assert policy.figures.alarms[COLLAPSE] > 1


def test_what_was_looked_up_tells_nothing_of_a_model() -> None:
    policy = DepthPolicy(DEPTH)

    assert play(policy, 1000, 2, [0.0, 0.0, 0.0], LOOKUP) == []
    assert not any(policy.figures.alarms.values())


def test_nothing_is_kept_of_what_ended() -> None:
    policy = DepthPolicy(DEPTH)
    play(policy, 3, 4, [0.5] * 3)
    for n in range(4):
        policy.forget(n)

    assert policy.sequences == 0
