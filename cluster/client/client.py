"""Client: a typed client of the gRPC API. Raises the exceptions of cluster/api/errors.py."""

import time
from collections.abc import Iterator
from typing import Any

import grpc

from outrider.cluster.api.collector import Collector
from outrider.cluster.api.events import event_from_wire
from outrider.cluster.api.generation import Event, GenerateCall, Generation
from outrider.cluster.api.status import ClusterStatus, Draining, ModelInfo, Scaling, status_from_wire
from outrider.cluster.client import unary_calls
from outrider.cluster.client.base import CALL_TIMEOUT_S, OPTIONS, SWAP_TIMEOUT_S, BaseClient
from outrider.cluster.client.call import exception_of, make_call
from outrider.cluster.client.resume import GatewayLostError, ResumableCall
from outrider.cluster.client.security import ClientSecurity
from outrider.cluster.client.silence import SilenceWatch
from outrider.cluster.client.unary_calls import T, UnaryCall
from outrider.proto import cluster_pb2
from outrider.workers.types.closing import ClosedOnExit
from outrider.workers.types.parameters import parameters_of


class Client(BaseClient[grpc.Channel], ClosedOnExit):
    """Client of a cluster's gateways. Thread-safe; a context manager."""

    def _open(self, address: str, security: ClientSecurity) -> grpc.Channel:
        return security.channel(address, OPTIONS)

    @parameters_of(make_call)
    def generate(self, *prompt: Any, **options: Any) -> Generation:
        """The complete answer.

        Pass `params`, or fields of SamplingParams as keywords; max_tokens then defaults to the model's length.
        `tools`: functions in OpenAI's format that the model may call. `chat_template_kwargs`: additional variables of
        the chat template. `auto_reasoning`: return the text before `</think>`, if any, separately. `traceparent` and
        `tracestate`: of the calling span (W3C Trace Context).
        """
        call, timeout_s = make_call(*prompt, **options)
        collector = Collector(call.params.n)
        for event in self._events(call, timeout_s):
            collector.add(event)
        return collector.result()

    @parameters_of(make_call)
    def stream(self, *prompt: Any, **options: Any) -> Iterator[Event]:
        """Events as they arrive: Accepted, Outputs, a Finished per output. Closing the iterator cancels the request."""
        call, timeout_s = make_call(*prompt, **options)
        return self._events(call, timeout_s)

    def _events(self, call: GenerateCall, timeout_s: float | None) -> Iterator[Event]:
        request = self._resumable(call)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            address = self.address
            try:
                yield from self._received(request, until)
                return
            except (grpc.RpcError, GatewayLostError) as error:
                if request.finished:
                    return
                pause_s = self._fail_over(address, request, error, until)
            time.sleep(pause_s)

    def _received(self, request: ResumableCall, until: float | None) -> Iterator[Event]:
        """The events from the current gateway. Raises RpcError if the connection breaks."""
        responses = self._generate(request, until)
        watch = SilenceWatch(responses.cancel)
        try:
            for response in responses:
                watch.received(heartbeat=response.HasField("heartbeat"))
                event = request.receive(event_from_wire(response), time.monotonic())
                if event is not None:
                    watch.pause()
                    yield event
                    watch.resume()
        except grpc.RpcError as error:
            raise (GatewayLostError.silent() if watch.silent else error) from None
        finally:
            watch.end()
            responses.cancel()

    def status(self, timeout_s: float = CALL_TIMEOUT_S) -> ClusterStatus:
        return self._call(unary_calls.status(), timeout_s)

    def model(self, timeout_s: float = CALL_TIMEOUT_S) -> ModelInfo:
        return self._call(unary_calls.model(), timeout_s)

    def watch_status(self) -> Iterator[ClusterStatus]:
        """The current status, then the status after every change, while the iterator is read."""
        responses = self._cluster.WatchStatus(cluster_pb2.WatchStatusRequest(), metadata=self._metadata)
        try:
            for response in responses:
                yield status_from_wire(response.status)
        except grpc.RpcError as error:
            raise exception_of(error, self.address) from error
        finally:
            responses.cancel()

    def scale(self, replicas: int, timeout_s: float = CALL_TIMEOUT_S) -> Scaling:
        """Sets the desired number of replicas. Returns immediately; `watch_status` shows the progress."""
        return self._call(unary_calls.scale(replicas), timeout_s)

    def drain(self, replica: str, timeout_s: float = CALL_TIMEOUT_S) -> Draining:
        """Removes a replica after its requests have finished or moved to another replica. Returns immediately."""
        return self._call(unary_calls.drain(replica), timeout_s)

    def swap_drafter(self, checkpoint: str, timeout_s: float = SWAP_TIMEOUT_S) -> list[str]:
        """Replaces the MTP module of every ready replica by another checkpoint's. Outputs do not change.

        `checkpoint`: a directory on the leaders' machines. Returns the names of the replicas.
        Raises InvalidRequestError if the module does not fit.
        """
        return self._call(unary_calls.swap_drafter(checkpoint), timeout_s)

    def _call(self, unary: UnaryCall[T], timeout_s: float) -> T:
        call = getattr(self._cluster, unary.method)
        try:
            return unary.read(call(unary.request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise exception_of(error, self.address) from error

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
