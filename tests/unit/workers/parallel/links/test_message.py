"""What is packed for a stage link is unpacked unchanged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.parallel.links.message import pack, unpack
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.round import Round, SequenceStart, Verdict, array_fields, ints

START = SequenceStart(
    sequence_id=7,
    output_index=1,
    seed=-(2**63),
    prompt_tokens=3,
    params=SamplingParams(temperature=0.7, top_p=0.9, stop=["ü"], stop_token_ids=[5, 6], max_tokens=None),
    prompt_ids=(3, 8),
    output_token_ids=(9, 9, 4),
)
GRAMMAR = StructuredOutputsParams(json='{"type": "null"}', disable_any_whitespace=True)
_ARRAYS = len(array_fields(Round))
VERDICT = Verdict(
    round_id=41,
    lane=3,
    token_offsets=ints([0, 2]),
    token_ids=ints([1, 2]),
    accepted_rows=ints([2]),
    drafts_accepted=ints([1]),
    finish=ints([0]),
    logprob_offsets=ints([0, 1, 2]),
    logprob_ids=ints([1, 2]),
    logprob_ranks=ints([1, 1]),
    logprob_values=np.array([-0.1, -1e-300]),
    stage_s=np.array([0.1, 0.2]),
)


def _assert_same(left: Round | Verdict, right: Round | Verdict | None) -> None:
    assert type(right) is type(left)
    assert right is not None
    assert len(array_fields(type(left))) >= 10
    for name in array_fields(type(left)):
        sent, got = getattr(left, name), getattr(right, name)
        assert (sent.dtype, sent.tolist()) == (got.dtype, got.tolist()), name
    assert (left.round_id, left.lane) == (right.round_id, right.lane)


@given(
    lengths=st.lists(st.integers(0, 70), min_size=_ARRAYS, max_size=_ARRAYS),
    begins=st.integers(0, 3),
    prepares=st.integers(0, 2),
    round_id=st.integers(0, 2**62),
)
def test_a_round_with_arrays_of_any_length_and_new_sequences_comes_back(
    lengths: list[int], begins: int, prepares: int, round_id: int
) -> None:
    fields = array_fields(Round)
    arrays = {
        name: (np.arange(length) * 7 - 2**62).astype(dtype)
        for (name, dtype), length in zip(fields.items(), lengths, strict=True)
    }
    news = {"begins": (START,) * begins, "prepares": (GRAMMAR,) * prepares}
    sent = Round(round_id=round_id, lane=2, **news, **arrays)

    got = unpack(bytearray(pack(sent)))

    _assert_same(sent, got)
    assert isinstance(got, Round)
    assert got.begins == sent.begins
    assert got.prepares == sent.prepares


def test_a_verdict_comes_back() -> None:
    _assert_same(VERDICT, unpack(bytearray(pack(VERDICT))))


@pytest.mark.parametrize("empty", [Round(), Verdict()])
def test_an_idle_ranks_empty_message_comes_back(empty: Round | Verdict) -> None:
    _assert_same(empty, unpack(bytearray(pack(empty))))


def test_a_slice_with_gaps_is_packed_as_what_it_shows() -> None:
    sent = Round(token_ids=ints(range(10))[::3], stage_s=np.arange(6.0)[::2])

    _assert_same(sent, unpack(bytearray(pack(sent))))


def test_the_word_to_stop_has_no_content() -> None:
    assert unpack(bytearray(pack(None))) is None


def test_arrays_that_arrived_can_be_written_to() -> None:
    """torch warns of, and may misuse, memory that is not."""
    got = unpack(bytearray(pack(VERDICT)))

    assert isinstance(got, Verdict)
    got.token_ids[0] = 9
    assert got.token_ids.tolist() == [9, 2]
