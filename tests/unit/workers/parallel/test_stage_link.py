"""What goes onto a stage link comes off it unchanged."""

import numpy as np
import torch

from outrider.workers.engine.round import Round, SequenceStart, Verdict, array_fields, ints
from outrider.workers.parallel.stage_link import body_bytes, first_clause, pack, unpack
from outrider.workers.sampling_params import SamplingParams


def _round() -> Round:
    start = SequenceStart(
        sequence_id=7,
        output_index=1,
        seed=-(2**63),
        prompt_tokens=3,
        params=SamplingParams(temperature=0.7, top_p=0.9, stop_token_ids=[5, 6], max_tokens=None),
    )
    return Round(
        round_id=41,
        lane=1,
        sequence_ids=ints([7, 9]),
        query_offsets=ints([0, 3, 4]),
        token_ids=ints([10, 11, 12, 13]),
        starts=ints([0, 20]),
        write_from=ints([0, 0]),
        sample_counts=ints([1, 1]),
        next_token_ids=ints([0, 0]),
        block_offsets=ints([0, 1, 3]),
        block_ids=ints([4, 2, 3]),
        draft_steps=ints([2, 0]),
        upkeep=ints([1, 0]),
        begins=(start,),
        ends=ints([3]),
        stage_s=np.array([0.25]),
    )


def _assert_same(left: Round | Verdict, right: Round | Verdict) -> None:
    assert len(array_fields(type(left))) >= 10
    for name in array_fields(type(left)):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name
    assert (left.round_id, left.lane) == (right.round_id, right.lane)


def test_a_round_with_new_sequences_and_bfloat16_states_survives_the_wire() -> None:
    sent, hidden = _round(), torch.randn(4, 6).bfloat16()

    header, body = pack(sent, hidden)
    message = unpack(header, body, torch.bfloat16)

    assert body.numel() == body_bytes(header, torch.bfloat16)
    assert isinstance(message.content, Round)
    _assert_same(sent, message.content)
    assert message.content.begins == sent.begins
    assert torch.equal(message.hidden, hidden)


def test_a_verdict_survives_the_wire() -> None:
    sent = Verdict(
        round_id=41,
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

    message = unpack(*pack(sent, torch.zeros(2, 3)), torch.float32)

    assert isinstance(message.content, Verdict)
    _assert_same(sent, message.content)
    assert message.hidden.shape == (2, 3)


def test_a_stop_has_no_content_and_no_body() -> None:
    header, body = pack(None, torch.empty(0, 0))

    assert body.numel() == 0 == body_bytes(header, torch.float32)
    assert unpack(header, body, torch.float32).content is None


def test_of_a_lost_connection_only_what_happened_is_told() -> None:
    error = RuntimeError(
        "[/src/gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242. This may indicate a crash. GLHF!"
    )

    assert first_clause(error) == "Connection closed by peer [127.0.0.1]:4242"
