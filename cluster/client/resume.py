"""The state that a client needs to resume a request at another gateway after a broken stream. No network, no clock.

The text is a function of prompt, parameters and seed, so another gateway can continue after the received tokens.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Self

import grpc

from outrider.cluster.api.errors import GenerationFailedError
from outrider.cluster.api.generation import Accepted, Event, Failed, Finished, GenerateCall, Output, Resume
from outrider.cluster.client.grpc_status import is_too_large, retry_delay_s, was_reached
from outrider.cluster.client.silence import HEARTBEAT_S, SILENCE_S
from outrider.workers.types.requests.request import OutputSoFar

PATIENCE_S = 660.0  # maximum time without progress. More than the 600 s that gateways wait for a replica
ACCEPT_PATIENCE_S = 10.0  # maximum time until a request is accepted
OVERLOAD_PATIENCE_S = 60.0  # the same if gateways are overloaded
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
# Statuses after which a resumed request is retried: a broken connection, an old gateway that still runs the request
# (ALREADY_EXISTS), an overloaded gateway.
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_NOT_YET = (*_BROKEN, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.RESOURCE_EXHAUSTED)
_NOT_ACCEPTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class GatewayLostError(GenerationFailedError):
    """The gateway closed the stream before the request finished, or stopped sending heartbeats."""

    @classmethod
    def silent(cls) -> Self:
        return cls(f"the gateway has sent nothing for {SILENCE_S:g} s")


class ResumableCall:
    """One request. `call` is what to send: first the original request, then one that resumes after the received tokens.

    Times are from any monotonic clock, in seconds.
    """

    def __init__(
        self,
        call: GenerateCall,
        patience_s: float,
        now: float,
        draw: Callable[[], float] = random.random,
        gateways: int = 1,
    ) -> None:
        """`draw`: a random number in [0, 1), so that the clients of a lost gateway do not retry at the same moment.

        `gateways`: the number of gateways.
        """
        self._original, self._draw = dataclasses.replace(call, heartbeat_s=HEARTBEAT_S), draw
        self._tried, self._unreached, self._gateways = set[str](), set[str](), gateways  # addresses; number of gateways
        self._found_full = False
        self._accepted: Accepted | None = None
        self._so_far = {index: list[int]() for index in range(call.params.n)}  # received tokens of unfinished outputs
        if call.resume is not None:
            self._so_far = {output.index: list(output.token_ids) for output in call.resume.outputs}
        self._prompt_received = self._prompt_repeats = 0
        self._finished_tokens = self._finished_before = (
            0  # of all finished outputs; of those that finished at earlier gateways
        )
        self._pause_s = FIRST_PAUSE_S
        self._patience_s, self._progress_at = patience_s, now

    @property
    def trace(self) -> tuple[tuple[str, str], ...]:
        """The trace context as gRPC metadata; empty without one."""
        return self._original.trace.metadata if self._original.trace is not None else ()

    @property
    def call(self) -> GenerateCall:
        if self._accepted is None:
            return self._original
        resume = Resume(
            seed=self._accepted.seed,
            fingerprint=self._accepted.fingerprint,
            outputs=tuple(OutputSoFar(index=n, token_ids=tuple(ids)) for n, ids in self._so_far.items()),
        )
        return dataclasses.replace(self._original, request_id=self._accepted.request_id, resume=resume)

    @property
    def finished(self) -> bool:
        """Whether every output has finished. A stream that breaks afterwards is not an error."""
        return self._accepted is not None and not self._so_far

    def receive(self, event: Event | None, now: float) -> Event | None:
        """The event, or None if the caller has it already.

        Raises GatewayLostError for an error event after which another gateway can resume, GenerationFailedError for
        other error events.
        """
        again = isinstance(event, Accepted) and self._accepted is not None
        match event:
            case Accepted():
                self._accepted = self._accepted or event
                self._prompt_repeats, self._finished_before = self._prompt_received, self._finished_tokens
            case Output():
                self._so_far[event.index] += event.token_ids
                event = self._without_repeats(event)
            case Finished():
                self._finished_tokens += len(self._so_far.pop(event.index, ()))
                event = self._with_whole_usage(event)
            case Failed():
                raise (GatewayLostError if event.resumable else GenerationFailedError)(event.message)
        if not isinstance(event, Accepted):
            self._pause_s, self._progress_at = FIRST_PAUSE_S, now
        return None if again else event

    def _without_repeats(self, output: Output) -> Output | None:
        """Removes prompt log-probabilities that were received before; None if nothing is left.

        A gateway that resumes a request sends all of them again unless it has tokens.
        """
        repeated = min(self._prompt_repeats, len(output.prompt_logprobs))
        self._prompt_repeats -= repeated
        self._prompt_received += len(output.prompt_logprobs) - repeated
        if not repeated:
            return output
        new = dataclasses.replace(output, prompt_logprobs=output.prompt_logprobs[repeated:])
        return new if new != Output(index=output.index) else None

    def _with_whole_usage(self, finished: Finished) -> Finished:
        """Adds the tokens of outputs that finished at earlier gateways: a gateway counts only outputs it resumed."""
        if finished.usage is None or not self._finished_before:
            return finished
        tokens = finished.usage.completion_tokens + self._finished_before
        return dataclasses.replace(finished, usage=dataclasses.replace(finished.usage, completion_tokens=tokens))

    def may_retry(self, error: Exception, now: float, left_s: float | None = None, address: str = "") -> bool:
        """Whether to retry.

        Yes if the request was accepted and its connection broke recently. Also if it was not accepted, and the gateway
        asked for a retry or another gateway was not tried yet. `left_s`: seconds until the caller's deadline, if there
        is one. `address`: of the gateway that raised the error.
        """
        waited_s = now - self._progress_at
        if self._accepted is None:
            return (
                self._patience_s > 0
                and isinstance(error, grpc.RpcError)
                and self._may_be_accepted(error, waited_s, left_s, address)
            )
        if waited_s > self._patience_s:
            return False
        if isinstance(error, GatewayLostError):
            return True
        return isinstance(error, grpc.RpcError) and (error.code() in _NOT_YET or _read_too_slowly(error))

    def _may_be_accepted(self, error: grpc.RpcError, waited_s: float, left_s: float | None, address: str) -> bool:
        """Whether another gateway, or this one after its retry delay, may accept the request before the deadline.

        No if the last attempt failed to reach every gateway.
        """
        if not (error.code() in _NOT_ACCEPTED or _read_too_slowly(error)) or is_too_large(error):
            return False
        self._tried.add(address)
        self._unreached.discard(address)
        if error.code() is grpc.StatusCode.UNAVAILABLE and not was_reached(error):
            self._unreached.add(address)
        self._found_full |= error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        least_s = retry_delay_s(error) or 0.0
        if len(self._tried) < self._gateways:  # whatever the time waited: a frozen gateway may have used it up
            return left_s is None or least_s < left_s
        patience_s = min(self._patience_s, OVERLOAD_PATIENCE_S if self._found_full else ACCEPT_PATIENCE_S) - waited_s
        return len(self._unreached) < self._gateways and least_s < (
            patience_s if left_s is None else min(patience_s, left_s)
        )

    def pause_s(self, error: Exception) -> float:
        """Seconds before the next retry: at least the gateway's retry delay, and increasing until an event arrives."""
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s, LAST_PAUSE_S)
        least = retry_delay_s(error) if isinstance(error, grpc.RpcError) else None
        return (least or 0.0) + pause * (0.5 + self._draw())


def is_gateway_error(error: Exception) -> bool:
    """Whether to try another gateway. No if the gateway ended the call because this client read too slowly."""
    return not (isinstance(error, grpc.RpcError) and _read_too_slowly(error))


def _read_too_slowly(error: grpc.RpcError) -> bool:
    """Whether the gateway ended the call of a slow client. Without RetryInfo, ABORTED means resumed by another call."""
    return error.code() is grpc.StatusCode.ABORTED and retry_delay_s(error) is not None
