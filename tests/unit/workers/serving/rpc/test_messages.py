"""What gateways and leaders tell each other arrives as it was said."""

from outrider.workers.serving.rpc import messages as wire
from outrider.workers.types.requests.request import OutputSoFar, Request
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.trace_context import TraceContext


def test_a_request_that_is_submitted_arrives_whole() -> None:
    request = Request(
        request_id="r",
        prompt_token_ids=(5, 6),
        params=SamplingParams(max_tokens=3, n=2),
        seed=7,
        resumed=(OutputSoFar(index=1, token_ids=(8,)),),
        trace=TraceContext.parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b"),
        suspect=True,
        cache_salt="someone",
    )

    arrived = wire.submit_from_wire(wire.submit_to_wire(request, "0").submit, "3:0")

    assert arrived.client_request_id == "r"
    for name in ("params", "seed", "resumed", "trace", "suspect", "cache_salt"):
        assert getattr(arrived, name) == getattr(request, name), name
    assert tuple(arrived.prompt_token_ids) == request.prompt_token_ids
