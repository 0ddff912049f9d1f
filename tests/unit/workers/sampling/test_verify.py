"""Verdicts: what comes out with drafts is what would come out one token at a time, cut where it must end."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.workers.sampling.verify import AcceptedTokens, Limits, verify, verify_round
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.round import LENGTH, RUNNING, STOPPED, Round, SequenceStart, ints

EOS, STOP = 1, 2
FAR = Limits(end_ids=frozenset({EOS, STOP}), max_length=100)


@pytest.mark.parametrize(
    ("targets", "drafts", "expected"),
    [
        ([7], [], AcceptedTokens([7], 0, RUNNING)),
        ([7, 8, 9], [7, 8], AcceptedTokens([7, 8, 9], 2, RUNNING)),
        ([7, 8, 9], [7, 5], AcceptedTokens([7, 8], 1, RUNNING)),
        ([7, 8, 9], [5, 8], AcceptedTokens([7], 0, RUNNING)),
        ([EOS], [], AcceptedTokens([EOS], 0, STOPPED)),
        ([7, STOP, 9], [7, STOP], AcceptedTokens([7, STOP], 2, STOPPED)),
        ([7, STOP, 9], [7, 5], AcceptedTokens([7, STOP], 1, STOPPED)),
        ([EOS, 8, 9], [EOS, 8], AcceptedTokens([EOS], 1, STOPPED)),
        ([7, EOS, STOP], [7, EOS], AcceptedTokens([7, EOS], 2, STOPPED)),
    ],
)
def test_the_longest_matching_prefix_and_one_more_token_up_to_the_first_end(
    targets: list[int], drafts: list[int], expected: AcceptedTokens
) -> None:
    assert verify(targets, drafts, length=10, limits=FAR) == expected


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (14, AcceptedTokens([7, 8, 9], 2, RUNNING)),
        (13, AcceptedTokens([7, 8, 9], 2, LENGTH)),
        (12, AcceptedTokens([7, 8], 2, LENGTH)),
        (11, AcceptedTokens([7], 1, LENGTH)),
    ],
)
def test_the_limit_cuts_inside_accepted_drafts(max_length: int, expected: AcceptedTokens) -> None:
    assert verify([7, 8, 9], [7, 8], length=10, limits=Limits(end_ids=frozenset(), max_length=max_length)) == expected


def test_a_token_that_ends_the_sequence_as_it_fills_it_is_a_stop() -> None:
    assert verify([7, EOS], [7], length=10, limits=Limits(end_ids=frozenset({EOS}), max_length=12)).finish == STOPPED


def start(sequence_id: int = 0, prompt_tokens: int = 4, **params: object) -> SequenceStart:
    return SequenceStart(
        sequence_id=sequence_id, output_index=0, seed=0, prompt_tokens=prompt_tokens, params=SamplingParams(**params)
    )


@pytest.mark.parametrize(
    ("params", "end_ids", "max_length"),
    [
        ({"max_tokens": 6}, {EOS}, 10),
        ({"max_tokens": None}, {EOS}, 50),
        ({"max_tokens": 60}, {EOS}, 50),
        ({"ignore_eos": True}, set(), 20),
        ({"ignore_eos": True, "stop_token_ids": [STOP]}, {STOP}, 20),
        ({"ignore_eos": True, "stop_token_ids": [EOS]}, {EOS}, 20),
        ({"stop_token_ids": [STOP, 9]}, {EOS, STOP, 9}, 20),
    ],
)
def test_limits_are_those_of_the_request_and_the_model(params: dict, end_ids: set[int], max_length: int) -> None:
    limits = Limits.of(start(**params), (EOS,), max_model_len=50)

    assert limits == Limits(end_ids=frozenset(end_ids), max_length=max_length)


class Live(dict[int, SequenceStart]):
    eos_token_ids = (EOS,)


def test_a_round_of_a_prompt_chunk_a_last_chunk_and_two_verifications() -> None:
    round = Round(
        round_id=7,
        lane=1,
        sequence_ids=ints([3, 5, 8, 9]),
        query_offsets=ints([0, 3, 5, 8, 12]),
        token_ids=ints([10, 11, 12, 20, 21, 30, 31, 32, 40, 41, EOS, 43]),
        starts=ints([0, 2, 6, 5]),
        sample_counts=ints([0, 1, 3, 4]),
    )
    live = Live({5: start(), 8: start(max_tokens=50), 9: start(max_tokens=50)})

    verdict = verify_round(round, ints([77, 31, 99, 98, 41, EOS, 43, 44]), live, max_model_len=100)

    assert (verdict.round_id, verdict.lane) == (7, 1)
    assert verdict.token_offsets.tolist() == [0, 0, 1, 3, 5]
    assert verdict.token_ids.tolist() == [77, 31, 99, 41, EOS]
    assert verdict.accepted_rows.tolist() == [3, 2, 2, 2]
    assert verdict.drafts_accepted.tolist() == [0, 0, 1, 2]
    assert verdict.finish.tolist() == [RUNNING, RUNNING, RUNNING, STOPPED]


def test_an_empty_round_has_an_empty_verdict() -> None:
    verdict = verify_round(Round(round_id=3), ints(), Live(), max_model_len=10)

    assert (verdict.round_id, verdict.token_offsets.tolist(), len(verdict.finish)) == (3, [0], 0)


def model_says(tokens: list[int], seed: int) -> int:
    """A target whose next token depends on all before it."""
    return random.Random(f"{seed} {tokens}").randrange(6)


def one_token_at_a_time(prompt: list[int], seed: int, limits: Limits) -> tuple[list[int], int]:
    tokens = list(prompt)
    while True:
        tokens.append(model_says(tokens, seed))
        if tokens[-1] in limits.end_ids:
            return tokens, STOPPED
        if len(tokens) == limits.max_length:
            return tokens, LENGTH


def drafted(tokens: list[int], depth: int, quality: float, rng: random.Random, seed: int) -> list[int]:
    drafts: list[int] = []
    for _ in range(depth):
        right = rng.random() < quality
        drafts.append(model_says(tokens + drafts, seed) if right else rng.randrange(6))
    return drafts


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    max_tokens=st.integers(1, 20),
    max_model_len=st.integers(4, 24),
    ends=st.frozensets(st.integers(0, 5), max_size=2),
    depth=st.integers(0, 6),
    quality=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_the_text_with_drafts_equals_the_text_without(
    seed: int, max_tokens: int, max_model_len: int, ends: frozenset[int], depth: int, quality: float
) -> None:
    prompt, rng = [3, 4, 5], random.Random(seed)
    limits = Limits(end_ids=ends, max_length=min(len(prompt) + max_tokens, max_model_len))

    tokens, finish = list(prompt), RUNNING
    while finish == RUNNING:
        drafts = drafted(tokens, depth, quality, rng, seed)
        targets = [model_says(tokens + drafts[:j], seed) for j in range(depth + 1)]
        accepted = verify(targets, drafts, len(tokens), limits)
        assert accepted.token_ids
        assert 0 <= len(accepted.token_ids) - accepted.drafts_accepted <= 1
        assert accepted.token_ids[: accepted.drafts_accepted] == drafts[: accepted.drafts_accepted]
        tokens, finish = tokens + accepted.token_ids, accepted.finish

    assert (tokens, finish) == one_token_at_a_time(prompt, seed, limits)


@settings(max_examples=50, deadline=None)
@given(depths=st.lists(st.integers(0, 5), min_size=1, max_size=12), seed=st.integers(0, 10**6))
def test_a_round_judges_each_sequence_as_if_it_were_alone(depths: list[int], seed: int) -> None:
    rng = random.Random(seed)
    queries = [[rng.randrange(4) for _ in range(depth + 1)] for depth in depths]
    targets = [[rng.randrange(4) for _ in range(depth + 1)] for depth in depths]
    live = Live({s: start(s, max_tokens=rng.randrange(1, 9), stop_token_ids=[STOP]) for s in range(len(depths))})
    counts = [depth + 1 for depth in depths]
    round = Round(
        sequence_ids=ints(range(len(depths))),
        query_offsets=ints(np.cumsum([0, *counts])),
        token_ids=ints([token for query in queries for token in query]),
        starts=ints([3] * len(depths)),
        sample_counts=ints(counts),
    )

    verdict = verify_round(round, ints([token for drawn in targets for token in drawn]), live, max_model_len=100)

    for s, (query, drawn) in enumerate(zip(queries, targets, strict=True)):
        alone = verify(drawn, query[1:], 4, Limits.of(live[s], (EOS,), 100))
        emitted = verdict.token_ids[verdict.token_offsets[s] : verdict.token_offsets[s + 1]].tolist()
        assert AcceptedTokens(emitted, int(verdict.drafts_accepted[s]), int(verdict.finish[s])) == alone
        assert verdict.accepted_rows[s] == len(emitted)
