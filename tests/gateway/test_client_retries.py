"""When a client asks again: after which errors, for how long, and what it waits in between. No network, no clock."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from outrider.cluster.api.generation import Accepted, GenerateCall, TokenPrompt
from outrider.cluster.client.resume import (
    ACCEPT_PATIENCE_S,
    OVERLOAD_PATIENCE_S,
    PATIENCE_S,
    ResumableCall,
    is_gateway_error,
)
from outrider.workers.types.requests.sampling_params import SamplingParams


def accepted_call() -> ResumableCall:
    request = ResumableCall(GenerateCall(prompt=TokenPrompt((5,)), params=SamplingParams()), patience_s=10, now=0.0)
    request.receive(Accepted(request_id="r", seed=3, prompt_tokens=1, fingerprint="f"), 0.0)
    return request


def status(code: grpc.StatusCode, retry_s: float | None = None, details: str = "") -> grpc.RpcError:
    found = status_pb2.Status()
    if retry_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(1000 * retry_s))
        found.details.add().Pack(retry)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", found.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=details)


UNREACHED = status(grpc.StatusCode.UNAVAILABLE, details="failed to connect to all addresses; last error: X: y: no")


def test_a_pause_is_what_the_gateway_said_and_no_two_clients_come_at_once() -> None:
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_s=3.0)
    call = GenerateCall(prompt=TokenPrompt((5,)), params=SamplingParams())

    pauses = [ResumableCall(call, 10, 0.0, draw=lambda drawn=n: drawn / 4).pause_s(full) for n in range(4)]

    assert all(pause > 3 for pause in pauses)
    assert len(set(pauses)) == 4


def test_who_is_accepted_asks_a_full_gateway_again() -> None:
    request, full = accepted_call(), status(grpc.StatusCode.RESOURCE_EXHAUSTED, 1.0)

    assert request.may_retry(full, 9.0)


def test_who_read_too_slowly_goes_on_and_who_was_replaced_by_another_call_does_not() -> None:
    request = accepted_call()

    slow = status(grpc.StatusCode.ABORTED, retry_s=0.1)
    assert request.may_retry(slow, 9.0)
    assert not is_gateway_error(slow), "it stays where it is"
    assert is_gateway_error(status(grpc.StatusCode.UNAVAILABLE))
    assert not request.may_retry(status(grpc.StatusCode.ABORTED), 9.0)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, 1.0), True),
        (status(grpc.StatusCode.ABORTED, 0.1), True),
        (status(grpc.StatusCode.ABORTED), False),
        (status(grpc.StatusCode.UNAVAILABLE, details="the gateway is draining"), True),
        (UNREACHED, False),
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, details="Received message larger than max (9 vs. 8)"), False),
        (status(grpc.StatusCode.INVALID_ARGUMENT), False),
        (status(grpc.StatusCode.ALREADY_EXISTS), False),
    ],
)
def test_a_request_that_was_not_accepted_is_asked_again_where_that_may_help(error: grpc.RpcError, again: bool) -> None:
    request = ResumableCall(GenerateCall(prompt=TokenPrompt((5,)), params=SamplingParams()), PATIENCE_S, 0.0)

    assert request.may_retry(error, 1.0) == again
    assert not request.may_retry(error, OVERLOAD_PATIENCE_S + 1)
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert not request.may_retry(error, ACCEPT_PATIENCE_S + 1)


def test_who_is_told_to_come_back_too_late_does_not_wait_for_that() -> None:
    request = ResumableCall(GenerateCall(prompt=TokenPrompt((5,)), params=SamplingParams()), PATIENCE_S, 0.0)
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_s=8.0)

    assert request.may_retry(full, 1.0, left_s=9.0)
    assert not request.may_retry(full, 1.0, left_s=7.0)
    assert request.may_retry(full, OVERLOAD_PATIENCE_S - 9)
    assert not request.may_retry(full, OVERLOAD_PATIENCE_S - 7)


def test_a_request_that_was_not_accepted_is_brought_to_every_gateway_however_long_the_first_took() -> None:
    call = GenerateCall(prompt=TokenPrompt((5,)), params=SamplingParams())
    request = ResumableCall(call, PATIENCE_S, 0.0, gateways=3)

    may_retry = [request.may_retry(UNREACHED, ACCEPT_PATIENCE_S * n, address=f"gateway {n}") for n in range(1, 4)]

    assert may_retry == [True, True, False]


def test_a_gateway_that_is_never_there_does_not_end_a_request_that_another_may_take_later() -> None:
    call = GenerateCall(prompt=TokenPrompt((5,)), params=SamplingParams())
    request = ResumableCall(call, PATIENCE_S, 0.0, gateways=2)
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_s=1.0)

    assert request.may_retry(full, 1.0, address="full")
    for at in (2.0, 3.0, ACCEPT_PATIENCE_S + 5):
        assert request.may_retry(UNREACHED, at, address="gone")
    assert not request.may_retry(UNREACHED, ACCEPT_PATIENCE_S + 6, address="full"), "no gateway is left"
