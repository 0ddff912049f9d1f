"""Collects the events of a request into a Generation, for clients and HTTP."""

import dataclasses

from outrider.cluster.api.errors import GenerationFailedError
from outrider.cluster.api.generation import Accepted, Completion, Event, Failed, Finished, Generation, Output
from outrider.workers.text.assembler import Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.types.requests.tools import ToolCall, ToolCallDelta


class Collector:
    """Accumulates one request's events."""

    def __init__(self, outputs: int) -> None:
        self._accepted: Accepted | None = None
        self._outputs = [Completion() for _ in range(outputs)]
        self._usage: Usage | None = None
        self._prompt_logprobs: list[dict[int, Logprob]] = []

    def add(self, event: Event) -> None:
        match event:
            case Accepted():
                self._accepted = event
            case Output():
                output = self._outputs[event.index]
                output.token_ids.extend(event.token_ids)
                output.text += event.text
                output.reasoning += event.reasoning
                for call in event.tool_calls:
                    _add_call(output.tool_calls, call)
                output.logprobs.extend(event.logprobs)
                self._prompt_logprobs.extend(event.prompt_logprobs)
            case Finished():
                output = self._outputs[event.index]
                output.finish_reason, output.stop_reason = event.reason.value, event.stop_reason
                self._usage = event.usage or self._usage
            case Failed():
                raise GenerationFailedError(event.message)

    def result(self) -> Generation:
        """GenerationFailedError if the stream ended too early."""
        if self._accepted is None or self._usage is None:
            raise GenerationFailedError("the gateway ended the stream before the request was done")
        return Generation(
            request_id=self._accepted.request_id,
            seed=self._accepted.seed,
            prompt_tokens=self._accepted.prompt_tokens,
            fingerprint=self._accepted.fingerprint,
            outputs=self._outputs,
            usage=self._usage,
            prompt_logprobs=self._prompt_logprobs,
        )


def _add_call(calls: list[ToolCall], delta: ToolCallDelta) -> None:
    if delta.index == len(calls):
        calls.append(ToolCall(id=delta.id, name=delta.name, arguments=delta.arguments))
    else:
        known = calls[delta.index]
        calls[delta.index] = dataclasses.replace(known, arguments=known.arguments + delta.arguments)
