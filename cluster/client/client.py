"""Client: a cluster's gRPC API with types. Errors are the exceptions in cluster/api/errors.py."""

import time
from collections.abc import Iterator
from typing import Any

import grpc

from outrider.cluster.api.collector import Collector
from outrider.cluster.api.events import event_from_wire
from outrider.cluster.api.generation import Event, GenerateCall, Generation
from outrider.cluster.api.status import ClusterStatus, Draining, ModelInfo, Scaling, status_from_wire
from outrider.cluster.client import questions
from outrider.cluster.client.base import ASK_TIMEOUT_S, OPTIONS, SWAP_TIMEOUT_S, BaseClient
from outrider.cluster.client.call import exception_of, make_call
from outrider.cluster.client.questions import Question, T
from outrider.cluster.client.resume import GatewayLeftError, ResumableCall
from outrider.cluster.client.security import ClientSecurity
from outrider.cluster.client.silence import SilenceWatch
from outrider.proto import cluster_pb2
from outrider.workers.types.closing import ClosedOnExit
from outrider.workers.types.parameters import parameters_of


class Client(BaseClient[grpc.Channel], ClosedOnExit):
    """A cluster, through its gateways. Safe to use from several threads; a context manager."""

    def _open(self, address: str, security: ClientSecurity) -> grpc.Channel:
        return security.channel(address, OPTIONS)

    @parameters_of(make_call)
    def generate(self, *prompt: Any, **options: Any) -> Generation:
        """The complete answer. Sampling is `params`, or SamplingParams' fields as keywords (max_tokens then defaults to
        the model's length). `tools` are functions in OpenAI's shape that the model may call, and `chat_template_kwargs`
        additional variables of the chat template; `auto_reasoning` separates what comes before `</think>`, if there is
        any. `traceparent` and `tracestate` are those of the calling span (W3C Trace Context)."""
        call, timeout_s = make_call(*prompt, **options)
        collector = Collector(call.params.n)
        for event in self._events(call, timeout_s):
            collector.add(event)
        return collector.result()

    @parameters_of(make_call)
    def stream(self, *prompt: Any, **options: Any) -> Iterator[Event]:
        """The events as they come: Accepted, Outputs, a Finished per output. Closing the iterator cancels."""
        call, timeout_s = make_call(*prompt, **options)
        return self._events(call, timeout_s)

    def _events(self, call: GenerateCall, timeout_s: float | None) -> Iterator[Event]:
        request = self._resumable(call)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            address = self.address
            try:
                yield from self._heard(request, until)
                return
            except (grpc.RpcError, GatewayLeftError) as error:
                if request.finished:
                    return
                pause_s = self._leave(address, request, error, until)
            time.sleep(pause_s)

    def _heard(self, request: ResumableCall, until: float | None) -> Iterator[Event]:
        """The events from one gateway. RpcError if its connection breaks."""
        responses = self._generate(request, until)
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
        responses = self._cluster.WatchStatus(cluster_pb2.WatchStatusRequest(), metadata=self._metadata)
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
        call = getattr(self._cluster, question.method)
        try:
            return question.read(call(question.request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise exception_of(error, self.address) from error

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
