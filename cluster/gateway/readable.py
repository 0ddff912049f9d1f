"""Refuses messages that cannot be parsed with INVALID_ARGUMENT. gRPC itself answers UNKNOWN and logs a traceback."""

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from outrider.workers.serving.rpc.cluster_key import Continuation

_MESSAGE = "the request cannot be parsed as this method's message"


class _Unreadable:
    """Replaces a request that cannot be parsed."""


class ReadableRequests(grpc.aio.ServerInterceptor):
    """An interceptor for methods with a single request message."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler
        read, write = _reading(handler.request_deserializer), handler.response_serializer
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_checked(handler.unary_stream), read, write)
        return grpc.unary_unary_rpc_method_handler(_checked(handler.unary_unary), read, write)


def _reading(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError:
            return _Unreadable()

    return read


def _checked(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wraps the method, so that it aborts for unparsed requests."""

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        if isinstance(request, _Unreadable):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _MESSAGE)
        async for response in method(request, context):
            yield response

    async def answer(request: Any, context: Any) -> Any:
        if isinstance(request, _Unreadable):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _MESSAGE)
        return await method(request, context)

    return stream if inspect.isasyncgenfunction(method) else answer
