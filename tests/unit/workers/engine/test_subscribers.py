"""Chunks reach those who submitted, each in the order in which they were made."""

from outrider.workers.engine.subscribers import Subscribers
from outrider.workers.types.requests.request import FinishReason, Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams


def _gained(token: int) -> SequenceChunk:
    return SequenceChunk(request_id="r", token_ids=(token,))


def test_what_was_held_is_delivered_before_what_comes_later() -> None:
    heard, subscribers = list[SequenceChunk](), Subscribers()
    subscribers.add(Request(request_id="r", prompt_token_ids=(1,), params=SamplingParams(), seed=0), heard.extend)
    end = SequenceChunk(request_id="r", finish_reason=FinishReason.CANCELLED)

    subscribers.hold([_gained(5)])
    subscribers.hold([_gained(6)])
    assert heard == []
    subscribers.deliver([end])

    assert heard == [_gained(5), _gained(6), end]
