"""What is counted of a batch, and from when."""

import pytest

from benchmarks.common.timed_batches import Watch
from outrider.workers.types.requests.request import FinishReason, SequenceChunk


def test_decoding_counts_from_when_every_prompt_has_its_first_token() -> None:
    marks: list[str] = []
    watch = Watch({"a", "b"}, lambda: marks.append("first"))

    watch([SequenceChunk(request_id="a", token_ids=(1, 2), drafted=3, accepted=1)])
    assert marks == []
    watch([SequenceChunk(request_id="a", token_ids=(3,)), SequenceChunk(request_id="b", token_ids=(1,))])
    assert marks == ["first"]
    watch([SequenceChunk(request_id="a", token_ids=(4, 5), drafted=2, accepted=1, finish_reason=FinishReason.LENGTH)])
    assert not watch.ended.is_set()
    watch(
        [SequenceChunk(request_id="b", token_ids=(2, 3, 4), drafted=4, accepted=2, finish_reason=FinishReason.LENGTH)]
    )

    decoded = watch.result(began=0.0)
    assert watch.ended.is_set()
    assert (decoded.tokens, decoded.rounds, decoded.drafted, decoded.accepted) == (5, 2, 6, 3)
    assert decoded.tokens_per_second == pytest.approx(5 / decoded.rest_s)


def test_each_sequences_time_ends_with_its_own_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 3.0, 8.0])
    monkeypatch.setattr("benchmarks.common.timed_batches.time.perf_counter", lambda: next(now))
    watch = Watch({"a", "b"}, lambda: None)
    watch([SequenceChunk(request_id=each, token_ids=(1,)) for each in "ab"])
    watch([SequenceChunk(request_id="a", token_ids=(2, 3, 4, 5), finish_reason=FinishReason.LENGTH)])
    watch([SequenceChunk(request_id="b", token_ids=(2,), finish_reason=FinishReason.LENGTH)])

    decoded = watch.result(began=0.0)
    assert decoded.each_s == 2.0 + 7.0
    assert decoded.tokens_per_second_each == pytest.approx(5 / 9.0)
    assert decoded.tokens_per_second == pytest.approx(5 / 7.0)


def test_a_failure_ends_the_wait_and_is_told() -> None:
    watch = Watch({"a", "b"}, lambda: None)

    watch([SequenceChunk(request_id="a", error="the engine failed")])

    assert watch.ended.is_set()
    assert watch.error == "the engine failed"
