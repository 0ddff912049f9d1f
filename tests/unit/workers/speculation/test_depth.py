"""Whose word counts: the engine's setting, the request's, and the measured price."""

import pytest

from outrider.workers.engine.request import Request
from outrider.workers.engine.round import RUNNING, STOPPED, Round, Verdict, ints
from outrider.workers.engine.sequence import Sequence
from outrider.workers.sampling_params import SamplingParams
from outrider.workers.speculation.depth import DepthPolicy
from outrider.workers.speculation.drafter import Draft


def sequence(speculation: str | int | None = None, sequence_id: int = 0) -> Sequence:
    params = SamplingParams(speculation=speculation)
    request = Request(request_id="r", prompt_token_ids=(3, 4), params=params, seed=0)
    return Sequence(
        sequence_id=sequence_id, request=request, output_index=0, token_ids=[3, 4], limit=100, draft_ceiling=16
    )


@pytest.mark.parametrize(
    ("engine", "request_", "depth"),
    [
        ("off", None, 0),
        ("off", "auto", 0),
        ("auto", "off", 0),
        ("auto", 5, 5),
        ("auto", 16, 16),
        (3, None, 3),
        (3, "off", 0),
        (3, 2, 2),
        (3, 9, 3),
        (16, None, 16),
    ],
)
def test_the_engine_is_the_ceiling_and_the_request_may_ask_for_less(
    engine: str | int, request_: str | int | None, depth: int
) -> None:
    policy = DepthPolicy(engine)

    assert {policy.depth(sequence(request_)) for _ in range(20)} == {depth}


def play(policy: DepthPolicy, speculation: str | None, rounds: int, *, step_s: float, accept_all: bool) -> list[int]:
    """Rounds of one sequence as the engine runs them: chosen depth k is drafted after round k and verified in k+1."""
    drafts, chosen = 0, []
    for number in range(rounds):
        depth = policy.depth(sequence(speculation))
        chosen.append(depth)
        policy.observe(
            Round(
                round_id=number,
                sequence_ids=ints([0]),
                query_offsets=ints([0, drafts + 1]),
                token_ids=ints([5] * (drafts + 1)),
                starts=ints([9]),
                sample_counts=ints([drafts + 1]),
            ),
            Verdict(drafts_accepted=ints([drafts if accept_all else 0]), finish=ints([RUNNING])),
            round_s=0.010 + 0.001 * drafts,
            draft_s=step_s * depth,
        )
        drafts = depth
    return chosen


def test_auto_drafts_deep_where_drafts_are_cheap_and_good() -> None:
    assert sorted(play(DepthPolicy("auto"), None, 300, step_s=0.001, accept_all=True)[100:])[100] == 6


def test_auto_does_not_draft_where_making_drafts_costs_more_than_they_save() -> None:
    chosen = play(DepthPolicy("auto"), None, 300, step_s=0.02, accept_all=True)[100:]

    assert chosen.count(0) > 0.9 * len(chosen)


def test_a_request_may_ask_for_auto_under_a_fixed_ceiling() -> None:
    chosen = play(DepthPolicy(2), "auto", 200, step_s=0.001, accept_all=True)

    assert max(chosen) == 2
    assert min(chosen) == 0


def test_rounds_with_prompt_chunks_say_nothing_of_time() -> None:
    policy = DepthPolicy("auto")
    play(policy, None, 200, step_s=0.001, accept_all=True)
    usual = max(play(policy, None, 9, step_s=0.001, accept_all=True))

    for _ in range(50):
        policy.observe(
            Round(
                sequence_ids=ints([0, 1]),
                query_offsets=ints([0, usual + 1, usual + 101]),
                token_ids=ints([5] * (usual + 101)),
                starts=ints([9, 0]),
                sample_counts=ints([usual + 1, 0]),
            ),
            Verdict(drafts_accepted=ints([usual, 0]), finish=ints([RUNNING, RUNNING])),
            round_s=5.0,
            draft_s=0.001 * usual,
        )

    assert max(play(policy, None, 9, step_s=0.001, accept_all=True)) == usual


def test_what_ended_is_forgotten() -> None:
    policy = DepthPolicy("auto")
    for sequence_id in range(100):
        policy.depth(sequence(sequence_id=sequence_id))
        policy.observe(
            Round(
                sequence_ids=ints([sequence_id]),
                query_offsets=ints([0, 1]),
                token_ids=ints([5]),
                starts=ints([9]),
                sample_counts=ints([1]),
                ends=ints([sequence_id - 1]),
            ),
            Verdict(drafts_accepted=ints([0]), finish=ints([STOPPED if sequence_id % 2 else RUNNING])),
            round_s=0.01,
            draft_s=0.0,
        )

    assert policy.sequences <= 1


def _rounds(policy: DepthPolicy, own: Sequence, count: int) -> None:
    """Rounds of 1 to 4 rows, in which a row takes half of a round's fixed time, and all drafts stand."""
    for number in range(count):
        drafts = number % 4
        policy.depth(own)
        policy.worthwhile({own.sequence_id: [Draft(5, 6.0)] * drafts})
        policy.observe(
            Round(
                round_id=number, sequence_ids=ints([own.sequence_id]), query_offsets=ints([0, drafts + 1]),
                token_ids=ints([5] * (drafts + 1)), starts=ints([9]), sample_counts=ints([drafts + 1]),
            ),
            Verdict(token_ids=ints([5] * (drafts + 1)), drafts_accepted=ints([drafts]), finish=ints([RUNNING])),
            round_s=0.010 + 0.005 * drafts,
            draft_s=0.0,
        )  # fmt: skip


DOUBTFUL = [Draft(1, 6.0), Draft(2, 0.0), Draft(3, 0.0), Draft(4, 6.0)]


def test_under_auto_drafts_are_verified_while_their_confidence_is_worth_their_time() -> None:
    policy, own = DepthPolicy("auto"), sequence()
    _rounds(policy, own, 200)

    assert policy.worthwhile({0: DOUBTFUL}) in ({0: [1]}, {0: [1, 2]})


def test_a_fixed_depth_is_verified_whatever_the_confidence() -> None:
    policy, own = DepthPolicy("auto"), sequence(4)
    _rounds(policy, own, 200)

    assert policy.worthwhile({0: DOUBTFUL}) == {0: [1, 2, 3, 4]}


def test_nothing_is_kept_of_sequences_that_ended() -> None:
    policy, own = DepthPolicy("auto"), sequence()
    _rounds(policy, own, 4)
    policy.observe(
        Round(sequence_ids=ints([0]), query_offsets=ints([0, 1]), token_ids=ints([5]), starts=ints([9]),
              sample_counts=ints([1])),
        Verdict(token_ids=ints([5]), drafts_accepted=ints([0]), finish=ints([STOPPED])),
        round_s=0.01, draft_s=0.0,
    )  # fmt: skip

    assert policy.sequences == 0
