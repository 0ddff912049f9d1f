"""InferenceService over gRPC: writes a call's events, and converts refusals to gRPC statuses."""

import asyncio
import contextlib
from typing import NoReturn

import grpc
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from outrider.cluster.api.health import INFERENCE
from outrider.cluster.gateway.requests.admission import LEAST_RETRY_S
from outrider.cluster.gateway.requests.call_record import CallRecord
from outrider.cluster.gateway.requests.inference import Inference
from outrider.cluster.gateway.requests.refusals import REFUSALS, status_code
from outrider.cluster.gateway.requests.writer import EventWriter, SlowReaderError, cancelled_if_over
from outrider.proto import inference_pb2, inference_pb2_grpc
from outrider.workers.types.errors import OverloadedError
from outrider.workers.types.requests.trace_context import TraceContext

METHOD = f"{INFERENCE}/Generate"
DEADLINE_SLACK_S = 0.05  # a client cancels at its own deadline, which may be slightly before ours

GenerateContext = grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The service. Runs in one event loop."""

    def __init__(self, inference: Inference, write_timeout_s: float) -> None:
        """`write_timeout_s`: the call of a client that reads nothing for this long is aborted."""
        self._inference, self._write_timeout_s = inference, write_timeout_s

    async def Generate(  # noqa: N802
        self, request: inference_pb2.GenerateRequest, context: GenerateContext
    ) -> None:
        parent = TraceContext.of(context.invocation_metadata() or ())
        replaced = False
        try:
            with self._inference.recorded(METHOD, parent) as record:
                record.cancelled_as = lambda: _cancelled_as(context)
                try:
                    await self._generate(request, context, record)
                finally:
                    replaced = record.replaced
        except REFUSALS as error:
            await _refuse(context, error)
        except SlowReaderError as error:
            await error.wait_until_sent()
            await context.abort_with_status(_retried(code_pb2.ABORTED, str(error), LEAST_RETRY_S))
        except asyncio.CancelledError:
            if replaced:
                await context.abort(grpc.StatusCode.ABORTED, "the request was resumed by another call")
            raise

    async def _generate(
        self, request: inference_pb2.GenerateRequest, context: GenerateContext, record: CallRecord
    ) -> None:
        with cancelled_if_over():
            await context.send_initial_metadata(record.context.metadata)
        writer = EventWriter(context, self._write_timeout_s, lambda: self._inference.contended)
        async with contextlib.aclosing(self._inference.events(request, record, context.time_remaining())) as events:
            await writer.write(await anext(events))
            async with writer.beating(record.call.heartbeat_s if record.call is not None else 0.0):
                async for event in events:
                    await writer.write(event)


def _cancelled_as(context: GenerateContext) -> str:
    left = context.time_remaining()  # None without a deadline
    return "deadline_exceeded" if left is not None and left <= DEADLINE_SLACK_S else "cancelled"


async def _refuse(context: GenerateContext, error: Exception) -> NoReturn:
    """Ends the call with a status. Only before the first event; later failures are error events."""
    if isinstance(error, OverloadedError):
        await context.abort_with_status(_retried(code_pb2.RESOURCE_EXHAUSTED, str(error), error.retry_after_s))
    await context.abort(status_code(error), str(error))


def _retried(code: int, message: str, retry_after_s: float) -> grpc.Status:
    """A status with RetryInfo: clients retry or resume after this delay."""
    status = status_pb2.Status(code=code, message=message)
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(1000 * retry_after_s))
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return rpc_status.to_status(status)
