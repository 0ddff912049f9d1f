"""Converts between events and GenerateResponse messages, for gateways and clients."""

from collections.abc import Mapping
from typing import Any

from outrider.cluster.api import generation as g
from outrider.cluster.api.fields import named
from outrider.proto import inference_pb2 as pb
from outrider.workers.text.assembler import TextPiece, Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.types.requests.request import FinishReason
from outrider.workers.types.requests.tools import ToolCallDelta

_ACCEPTED = ("request_id", "seed", "prompt_tokens", "fingerprint")
_CALL = ("index", "id", "name", "arguments")
_USAGE_COUNTS = (
    *("prompt_tokens", "cached_tokens", "completion_tokens"),
    *("rounds", "drafted", "accepted", "estimated_time_saved_s"),
)
_USAGE_LISTS = ("accepted_per_position", "drafted_per_position", "rounds_per_depth")
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_REASONS_BACK = {code: reason for reason, code in _REASONS.items()}


def event_to_wire(event: g.Event) -> pb.GenerateResponse:
    match event:
        case g.Accepted():
            return pb.GenerateResponse(accepted=pb.Accepted(**named(event, _ACCEPTED)))
        case g.Output():
            return pb.GenerateResponse(output=_output_to_wire(event))
        case g.Finished():
            return pb.GenerateResponse(finished=_finished_to_wire(event))
        case g.Failed():
            return pb.GenerateResponse(error=pb.Error(message=event.message, resumable=event.resumable))


def heartbeat_to_wire() -> pb.GenerateResponse:
    return pb.GenerateResponse(heartbeat=pb.Heartbeat())


def event_from_wire(response: pb.GenerateResponse) -> g.Event | None:
    """None for a heartbeat, or for an event type that only newer gateways send."""
    match response.WhichOneof("event"):
        case "accepted":
            return g.Accepted(**named(response.accepted, _ACCEPTED))
        case "output":
            return _output_from_wire(response.output)
        case "finished":
            return _finished_from_wire(response.finished)
        case "error":
            return g.Failed(message=response.error.message, resumable=response.error.resumable)
        case _:
            return None


def _output_to_wire(output: g.Output) -> pb.Output:
    return pb.Output(
        index=output.index,
        token_ids=output.token_ids,
        text=output.text,
        reasoning=output.reasoning,
        tool_calls=[pb.ToolCallDelta(**named(delta, _CALL)) for delta in output.tool_calls],
        drafted=output.drafted,
        accepted=output.accepted,
        pieces=[pb.TextPiece(**piece._asdict()) for piece in output.pieces],
        logprobs=map(_logprobs_to_wire, output.logprobs),
        prompt_logprobs=map(_logprobs_to_wire, output.prompt_logprobs),
    )


def _logprobs_to_wire(entry: Mapping[int, Logprob]) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        entries=[
            pb.Logprob(token_id=n, logprob=one.logprob, rank=one.rank, decoded_token=one.decoded_token)
            for n, one in entry.items()
        ]
    )


def _output_from_wire(output: pb.Output) -> g.Output:
    return g.Output(
        index=output.index,
        token_ids=tuple(output.token_ids),
        text=output.text,
        reasoning=output.reasoning,
        tool_calls=tuple(ToolCallDelta(**named(delta, _CALL)) for delta in output.tool_calls),
        drafted=output.drafted,
        accepted=output.accepted,
        pieces=tuple(TextPiece(one.text, one.reasoning, one.drafted) for one in output.pieces),
        logprobs=tuple(map(_logprobs_from_wire, output.logprobs)),
        prompt_logprobs=tuple(map(_logprobs_from_wire, output.prompt_logprobs)),
    )


def _logprobs_from_wire(entry: pb.TokenLogprobs) -> dict[int, Logprob]:
    return {e.token_id: Logprob(logprob=e.logprob, rank=e.rank, decoded_token=e.decoded_token) for e in entry.entries}


def _finished_to_wire(finished: g.Finished) -> pb.Finished:
    stop = finished.stop_reason
    return pb.Finished(
        index=finished.index,
        reason=_REASONS[finished.reason],
        stop_token_id=stop if isinstance(stop, int) else None,
        stop_string=stop if isinstance(stop, str) else None,
        usage=None if finished.usage is None else _usage_to_wire(finished.usage),
    )


def _finished_from_wire(finished: pb.Finished) -> g.Finished:
    which = finished.WhichOneof("stop_reason")
    return g.Finished(
        index=finished.index,
        reason=_REASONS_BACK[finished.reason],
        stop_reason=None if which is None else getattr(finished, which),
        usage=_usage_from_wire(finished.usage) if finished.HasField("usage") else None,
    )


def _usage_to_wire(usage: Usage) -> pb.Usage:
    return pb.Usage(**named(usage, (*_USAGE_COUNTS, *_USAGE_LISTS)))


def _usage_from_wire(usage: pb.Usage) -> Usage:
    lists: dict[str, Any] = {name: list(getattr(usage, name)) for name in _USAGE_LISTS}
    return Usage(**named(usage, _USAGE_COUNTS), **lists)
