"""Client: a cluster's gRPC API with types. Errors are the exceptions in cluster/api/errors.py."""

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from outrider.cluster.api.calls import call_to_wire
from outrider.cluster.api.chat_shapes import Messages, ToolChoice, ToolsGiven
from outrider.cluster.api.collector import Collector
from outrider.cluster.api.events import event_from_wire
from outrider.cluster.api.generation import Event, GenerateCall, Generation
from outrider.cluster.api.status import ClusterStatus, Draining, ModelInfo, Scaling, status_from_wire
from outrider.cluster.client import questions
from outrider.cluster.client.call import build_call, chat_options, exception_of, explained
from outrider.cluster.client.questions import Question, T
from outrider.cluster.client.resume import PATIENCE_S, GatewayLeftError, ResumableCall
from outrider.cluster.client.security import ClientSecurity
from outrider.cluster.client.silence import SilenceWatch
from outrider.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2_grpc
from outrider.workers.types.sampling_params import SamplingParams

DEFAULT_ADDRESS = "127.0.0.1:50051"
PLAIN = ClientSecurity()
ASK_TIMEOUT_S = 10.0
SWAP_TIMEOUT_S = 600.0  # loading a large module takes a while
OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 5_000),  # a gateway that is frozen or cut off is noticed while a call waits for it
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    (
        "grpc.min_reconnect_backoff_ms",
        4_000,
    ),  # also limits the connection handshake, which a frozen gateway never completes
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 4_000),
)


def within(pause_s: float, until: float | None) -> float:
    return pause_s if until is None else max(0.0, min(pause_s, until - time.monotonic()))


def left_s(until: float | None) -> float | None:
    return None if until is None else until - time.monotonic()


def addresses_of(address: str | Sequence[str]) -> list[str]:
    """Each gateway's HOST:PORT."""
    return address.split(",") if isinstance(address, str) else list(address)


class Client:
    """A cluster, through its gateways. Safe to use from several threads; a context manager."""

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        security: ClientSecurity = PLAIN,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`address`: HOST:PORT of a gateway, or of several: a list, or one text with commas. A request whose gateway is
        lost continues at the next one that answers, unless there is none for `patience_s`; 0 never retries."""
        self._addresses = addresses_of(address)
        self._now = 0  # index of the current one
        self._patience_s = patience_s
        self._metadata = security.metadata
        self._channels = [security.channel(one, OPTIONS) for one in self._addresses]

    @property
    def address(self) -> str:
        """The address of the current gateway."""
        return self._addresses[self._now]

    def _leave(self, address: str) -> None:
        """Switches to the next gateway, unless another call has already done so."""
        if address == self.address:
            self._now = (self._now + 1) % len(self._addresses)

    def generate(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Messages | None = None,
        tools: ToolsGiven | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        auto_reasoning: bool = False,
        params: SamplingParams | None = None,
        request_id: str = "",
        traceparent: str = "",
        tracestate: str = "",
        timeout_s: float | None = None,
        **sampling: Any,  # SamplingParams' own fields
    ) -> Generation:
        """The complete answer. Sampling is `params`, or SamplingParams' fields as keywords (max_tokens then defaults to
        the model's length). `tools` are functions in OpenAI's shape that the model may call, and `chat_template_kwargs`
        additional variables of the chat template; `auto_reasoning` separates what comes before `</think>`, if there is
        any. `traceparent` and `tracestate` are those of the calling span (W3C Trace Context)."""
        trace = (traceparent, tracestate)
        chat = chat_options(tools, tool_choice, parallel_tool_calls, chat_template_kwargs, auto_reasoning)
        call = build_call(prompt, token_ids, messages, params, sampling, request_id, trace, chat=chat)
        collector = Collector(call.params.n)
        for event in self._events(call, timeout_s):
            collector.add(event)
        return collector.result()

    def stream(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Messages | None = None,
        tools: ToolsGiven | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        auto_reasoning: bool = False,
        params: SamplingParams | None = None,
        request_id: str = "",
        traceparent: str = "",
        tracestate: str = "",
        timeout_s: float | None = None,
        speculation_detail: bool = False,
        **sampling: Any,  # SamplingParams' own fields
    ) -> Iterator[Event]:
        """The events as they come: Accepted, Outputs, a Finished per output. Closing the iterator cancels."""
        trace = (traceparent, tracestate)
        chat = chat_options(tools, tool_choice, parallel_tool_calls, chat_template_kwargs, auto_reasoning)
        call = build_call(prompt, token_ids, messages, params, sampling, request_id, trace, speculation_detail, chat)
        return self._events(call, timeout_s)

    def _events(self, call: GenerateCall, timeout_s: float | None) -> Iterator[Event]:
        now = time.monotonic()
        request = ResumableCall(call, self._patience_s, now, gateways=len(self._addresses))
        until = None if timeout_s is None else now + timeout_s
        while True:
            address = self.address
            try:
                yield from self._heard(request, until)
                return
            except (grpc.RpcError, GatewayLeftError) as error:
                if request.finished:
                    return
                if not request.may_go_on(error, time.monotonic(), left_s(until)):
                    raise explained(error, address) from error
                pause_s = request.pause_s(error)
            self._leave(address)
            time.sleep(within(pause_s, until))

    def _heard(self, request: ResumableCall, until: float | None) -> Iterator[Event]:
        """The events from one gateway. RpcError if its connection breaks."""
        left = None if until is None else max(0.0, until - time.monotonic())
        metadata = (*self._metadata, *request.trace)
        inference = inference_pb2_grpc.InferenceServiceStub(self._channels[self._now])
        responses = inference.Generate(call_to_wire(request.call), timeout=left, metadata=metadata)
        watch = SilenceWatch(responses.cancel)
        try:
            for response in responses:
                watch.heard(heartbeat=response.HasField("heartbeat"))
                event = request.hear(event_from_wire(response), time.monotonic())
                if event is not None:
                    yield event
                    watch.heard(heartbeat=False)  # the caller was slow, not the gateway
        except grpc.RpcError as error:
            raise (GatewayLeftError.silent() if watch.silent else error) from None
        finally:
            watch.end()
            responses.cancel()

    def status(self, timeout_s: float = ASK_TIMEOUT_S) -> ClusterStatus:
        return self._ask(questions.status(), timeout_s)

    def model(self, timeout_s: float = ASK_TIMEOUT_S) -> ModelInfo:
        return self._ask(questions.model(), timeout_s)

    def watch_status(self) -> Iterator[ClusterStatus]:
        """The status now and after every change, for as long as the iterator is read."""
        responses = self._cluster().WatchStatus(cluster_pb2.WatchStatusRequest(), metadata=self._metadata)
        try:
            for response in responses:
                yield status_from_wire(response.status)
        except grpc.RpcError as error:
            raise exception_of(error, self.address) from error
        finally:
            responses.cancel()

    def scale(self, replicas: int, timeout_s: float = ASK_TIMEOUT_S) -> Scaling:
        """Sets the number of replicas. Returns at once; `watch_status` shows the progress."""
        return self._ask(questions.scale(replicas), timeout_s)

    def drain(self, replica: str, timeout_s: float = ASK_TIMEOUT_S) -> Draining:
        """Removes a replica. It finishes its requests first, or they move to another replica. Returns at once."""
        return self._ask(questions.drain(replica), timeout_s)

    def swap_drafter(self, checkpoint: str, timeout_s: float = SWAP_TIMEOUT_S) -> list[str]:
        """Replaces the MTP module of every ready replica by another checkpoint's, and returns their names. Tokens stay.

        `checkpoint` is a directory on the leaders' machines. InvalidRequestError if it does not fit.
        """
        return self._ask(questions.swap_drafter(checkpoint), timeout_s)

    def _ask(self, question: Question[T], timeout_s: float) -> T:
        call = getattr(self._cluster(), question.method)
        try:
            return question.read(call(question.request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise exception_of(error, self.address) from error

    def _cluster(self) -> cluster_pb2_grpc.ClusterServiceStub:
        return cluster_pb2_grpc.ClusterServiceStub(self._channels[self._now])

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
