"""Which requests a gateway takes on, before any work is done for them."""

import pytest

from outrider.cluster.api.errors import DuplicateRequestError
from outrider.cluster.gateway.requests.admission import RETRY_AFTER_S, Admission, AdmissionLimits
from outrider.workers.types.errors import OverloadedError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock | None = None, **limits: object) -> Admission:
    return Admission(AdmissionLimits(**limits), clock or Clock())


def busy(waiting: int, **limits: object) -> Admission:
    """One place, which is held for two seconds at a time."""
    clock = Clock()
    one = admission(clock, **limits)
    one.set_places(1)
    first = one.enter("first", caller="heavy")
    first.wait_for_places(lambda: None)
    clock.now = 2.0
    first.close()
    for number in range(1 + waiting):
        one.enter(f"w{number}", caller="heavy").wait_for_places(lambda: None)
    return one


def test_a_ticket_gives_everything_back_however_it_ends() -> None:
    one = admission(max_live_requests=2, max_queued_tokens=10)

    with one.enter("a") as ticket:
        ticket.queue(10)
        with pytest.raises(OverloadedError), one.enter("b") as other:
            other.queue(1)
        assert (one.live_requests, one.queued_tokens) == (1, 10)

    assert (one.live_requests, one.queued_tokens) == (0, 0)


def test_a_request_counts_as_often_as_it_has_outputs() -> None:
    one = admission(max_live_requests=4, max_queued_tokens=10)

    with one.enter("many", outputs=100), pytest.raises(OverloadedError):  # alone
        one.enter("one")
    with one.enter("a", outputs=3), one.enter("b", outputs=1), pytest.raises(OverloadedError) as caught:
        one.enter("c")
    assert "4 outputs of 2 requests" in str(caught.value)
    assert one.live_requests == 0


def test_a_refusal_says_when_there_will_be_room_as_fast_as_others_have_left() -> None:
    one = admission(max_live_requests=1)
    one.enter("a")
    with pytest.raises(OverloadedError) as unknown:
        one.enter("b")
    assert unknown.value.retry_after_s == RETRY_AFTER_S

    with pytest.raises(OverloadedError, match="live") as caught:
        busy(waiting=3, max_live_requests=4).enter("b", caller="heavy")

    assert caught.value.retry_after_s == 2, "one of them ends every two seconds"
    assert caught.value.cause == "live_requests"


def test_who_would_wait_too_long_is_refused_with_the_time_it_would_wait() -> None:
    one = busy(waiting=4, max_queue_wait_s=9)

    with pytest.raises(OverloadedError, match=r"in about 10\.0 s, and the limit is 9 s") as caught:
        one.enter("b", caller="heavy")

    assert (caught.value.cause, caught.value.retry_after_s) == ("wait", 10)
    light = one.enter("c", caller="light")
    light.wait_for_places(lambda: None)
    with pytest.raises(OverloadedError):
        one.enter("e", caller="heavy")
    assert one.enter("d", caller="heavy", resumed=True), "it was accepted before"


def test_who_cannot_have_its_turn_before_its_deadline_is_refused_at_once() -> None:
    one = busy(waiting=4, max_queue_wait_s=60)

    with pytest.raises(
        OverloadedError, match=r"it would start in about 10\.0 s, and its deadline is in 8\.0 s"
    ) as caught:
        one.enter("b", caller="heavy", deadline_s=8.0)

    assert caught.value.cause == "deadline"
    assert one.enter("c", caller="heavy", deadline_s=11.0)
    assert one.enter("d", caller="heavy")


def test_a_token_has_no_more_live_than_its_limit_and_others_have_theirs() -> None:
    one = admission(max_live_requests_per_token=2)
    one.enter("a", caller="writer")
    ticket = one.enter("b", caller="writer")

    with pytest.raises(OverloadedError, match="2 outputs of writer are live") as caught:
        one.enter("c", caller="writer")
    assert caught.value.cause == "token_limit"
    assert one.enter("d", caller="reader")
    for number in range(5):
        assert one.enter(f"anonymous {number}"), "without tokens there is nothing to tell callers by"
    ticket.close()
    assert one.enter("e", caller="writer")


def test_a_full_gateway_takes_on_who_has_less_than_its_share() -> None:
    one = admission(max_live_requests=10, max_queued_tokens=100)
    for number in range(10):
        one.enter(f"h{number}", caller="heavy").queue(10)

    for number in range(5):
        one.enter(f"l{number}", caller="light").queue(10)
    for caller in ("heavy", "light"):
        with pytest.raises(OverloadedError):
            one.enter("more", caller=caller)


def test_the_queue_takes_prompts_of_who_has_less_than_its_share() -> None:
    one = admission(max_live_requests=100, max_queued_tokens=100)
    for number in range(10):
        one.enter(f"h{number}", caller="heavy").queue(10)
    light = one.enter("l", caller="light")

    light.queue(50)

    with pytest.raises(OverloadedError, match="prompt tokens are waiting"):
        one.enter("l2", caller="light").queue(1)


def test_a_full_queue_refuses_before_any_work() -> None:
    one = admission(max_live_requests=20, max_queued_tokens=100)
    one.enter("a").queue(100)

    with pytest.raises(OverloadedError, match="prompt tokens are waiting"):
        one.enter("b")

    assert one.enter("c", resumed=True)


def test_more_outputs_than_the_earlier_call_had_count_against_the_limits() -> None:
    one = admission(max_live_requests=4, max_live_requests_per_token=4)
    for name in "abc":
        one.enter(name, caller="own")

    one.enter("a", caller="own", resumed=True)
    with pytest.raises(OverloadedError):
        one.enter("b", caller="own", resumed=True, outputs=100)

    assert one.live_requests == 3


def test_a_duplicate_leaves_the_live_request_its_place() -> None:
    one = admission(max_live_requests=2, max_queued_tokens=10)

    with one.enter("a"):
        with pytest.raises(DuplicateRequestError):
            one.enter("a")
        assert one.live_requests == 1


def test_a_prompt_longer_than_the_queue_is_taken_when_it_is_alone() -> None:
    one = admission(max_live_requests=2, max_queued_tokens=10)

    with one.enter("a") as ticket:
        ticket.queue(50)
        with pytest.raises(OverloadedError):
            one.enter("b")
        ticket.started()
        assert one.queued_tokens == 0
