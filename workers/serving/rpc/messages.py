"""Converts between worker types and the protobuf messages that gateways and leaders exchange."""

from collections.abc import Iterable

from outrider.proto import worker_pb2
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.model.served_model import served_model_fields
from outrider.workers.types.requests.request import FinishReason, OutputSoFar, Request, SequenceChunk, TokenLogprobs
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.trace_context import TraceContext


def submit_to_wire(request: Request, request_id: str) -> worker_pb2.AttachRequest:
    """`request_id` replaces the request's own id; it must be unique on its stream."""
    return worker_pb2.AttachRequest(
        submit=worker_pb2.Submit(
            request_id=request_id,
            prompt_token_ids=request.prompt_token_ids,
            sampling_params=request.params.to_json(),
            seed=request.seed,
            resumed=[worker_pb2.OutputSoFar(index=o.index, token_ids=o.token_ids) for o in request.resumed],
            client_request_id=request.request_id,
            traceparent=request.trace.parent if request.trace else "",
            tracestate=request.trace.state if request.trace else "",
            suspect=request.suspect,
            cache_salt=request.cache_salt,
        )
    )


def submit_from_wire(submit: worker_pb2.Submit, request_id: str) -> Request:
    """ValueError or TypeError if the parameters are not valid, as from another version of outrider."""
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(submit.prompt_token_ids),
        params=SamplingParams.from_json(submit.sampling_params),
        seed=submit.seed,
        resumed=tuple(OutputSoFar(index=o.index, token_ids=tuple(o.token_ids)) for o in submit.resumed),
        client_request_id=submit.client_request_id,
        cache_salt=submit.cache_salt,
        trace=TraceContext.parse(submit.traceparent, submit.tracestate),
        suspect=submit.suspect,
    )


def cancel_to_wire(request_id: str, index: int | None) -> worker_pb2.AttachRequest:
    return worker_pb2.AttachRequest(cancel=worker_pb2.Cancel(request_id=request_id, index=index))


def cancel_from_wire(cancel: worker_pb2.Cancel) -> int | None:
    """The output to end, or None for all."""
    return cancel.index if cancel.HasField("index") else None


def chunks_to_wire(chunks: Iterable[tuple[str, SequenceChunk]], places: int) -> worker_pb2.AttachResponse:
    """`chunks`: pairs of a request's id on this stream and a chunk. `places`: outputs the stream may have at once."""
    wire_chunks = [_chunk_to_wire(request_id, chunk) for request_id, chunk in chunks]
    return worker_pb2.AttachResponse(chunks=wire_chunks, places=places)


def _chunk_to_wire(request_id: str, chunk: SequenceChunk) -> worker_pb2.SequenceChunk:
    return worker_pb2.SequenceChunk(
        request_id=request_id,
        index=chunk.index,
        token_ids=chunk.token_ids,
        logprobs=map(_logprobs_to_wire, chunk.logprobs),
        drafted=chunk.drafted,
        accepted=chunk.accepted,
        finish_reason="" if chunk.finish_reason is None else chunk.finish_reason.value,
        stop_token_id=chunk.stop_token_id,
        error=chunk.error,
        engine_lost=chunk.engine_lost,
        cached_tokens=chunk.cached_tokens,
        prompt_logprobs=map(_logprobs_to_wire, chunk.prompt_logprobs),
        saved_s=chunk.saved_s,
        queued_s=chunk.queued_s,
        began=chunk.began,
    )


def _logprobs_to_wire(entry: TokenLogprobs) -> worker_pb2.ChunkLogprobs:
    return worker_pb2.ChunkLogprobs(token_ids=entry.token_ids, logprobs=entry.logprobs, ranks=entry.ranks)


def chunk_from_wire(chunk: worker_pb2.SequenceChunk, request_id: str) -> SequenceChunk:
    """`request_id` is the client's id, which replaces the wire id."""
    return SequenceChunk(
        request_id=request_id,
        index=chunk.index,
        token_ids=tuple(chunk.token_ids),
        logprobs=tuple(map(_logprobs_from_wire, chunk.logprobs)),
        drafted=chunk.drafted,
        accepted=chunk.accepted,
        finish_reason=FinishReason(chunk.finish_reason) if chunk.finish_reason else None,
        stop_token_id=chunk.stop_token_id if chunk.HasField("stop_token_id") else None,
        error=chunk.error,
        engine_lost=chunk.engine_lost,
        cached_tokens=chunk.cached_tokens,
        prompt_logprobs=tuple(map(_logprobs_from_wire, chunk.prompt_logprobs)),
        saved_s=chunk.saved_s,
        queued_s=chunk.queued_s,
        began=chunk.began,
    )


def _logprobs_from_wire(entry: worker_pb2.ChunkLogprobs) -> TokenLogprobs:
    return TokenLogprobs(token_ids=tuple(entry.token_ids), logprobs=tuple(entry.logprobs), ranks=tuple(entry.ranks))


def engine_to_wire(info: EngineInfo, counters: EngineCounters) -> worker_pb2.GetEngineResponse:
    return worker_pb2.GetEngineResponse(
        **served_model_fields(info),
        drafters=info.drafters,
        verification=info.verification,
        max_num_seqs=info.max_num_seqs,
        running=counters.running,
        waiting=counters.waiting,
        rounds=counters.rounds,
        kv_cache_usage=counters.kv_cache_usage,
        drafted=counters.drafted,
        accepted=counters.accepted,
    )


def engine_from_wire(response: worker_pb2.GetEngineResponse) -> tuple[EngineInfo, EngineCounters]:
    """Counters that the message does not carry keep their defaults."""
    info = EngineInfo(
        **served_model_fields(response),
        drafters=tuple(response.drafters),
        verification=response.verification,
        max_num_seqs=response.max_num_seqs,
    )
    counters = EngineCounters(
        running=response.running,
        waiting=response.waiting,
        rounds=response.rounds,
        kv_cache_usage=response.kv_cache_usage,
        drafted=response.drafted,
        accepted=response.accepted,
    )
    return info, counters
