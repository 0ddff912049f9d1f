"""What one stream delivered, and how it differs from the same request without faults. No network, no clock."""

from collections import Counter
from dataclasses import dataclass, field

from outrider.cluster.api.generation import Accepted, Event, Failed, Finished, Output
from outrider.workers.text.outputs import Logprob

Logprobs = list[dict[int, Logprob]]


@dataclass(slots=True)
class OutputTranscript:
    """One output of a stream, accumulated."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    logprobs: Logprobs = field(default_factory=list)
    finish_reason: str = ""
    stop_reason: int | str | None = None


class Transcript:
    """Accumulates a stream's events as they arrive, and records those that arrive out of order."""

    def __init__(self) -> None:
        self.outputs: dict[int, OutputTranscript] = {}
        self.prompt_logprobs: Logprobs = []
        self.completion_tokens: int | None = None  # from the usage, which comes with the last event
        self.error = ""
        self.events = 0
        self.times: list[float] = []  # when each event with tokens arrived
        self.disorder: list[str] = []
        self._finished: Counter[int] = Counter()

    @property
    def tokens(self) -> int:
        return sum(len(output.token_ids) for output in self.outputs.values())

    def add(self, event: Event, at: float) -> None:
        """`at`: seconds on a monotonic clock."""
        self.events += 1
        if (self.events == 1) is not isinstance(event, Accepted):
            self.disorder.append(f"event {self.events} is {type(event).__name__}")
        if self.completion_tokens is not None:
            self.disorder.append(f"{type(event).__name__} after the last event")
        match event:
            case Output():
                self._add_output(event, at)
            case Finished():
                self._finish(event)
            case Failed():
                self.error = event.message

    def _add_output(self, event: Output, at: float) -> None:
        if self._finished[event.index]:
            self.disorder.append(f"output {event.index} continues after its end")
        output = self.outputs.setdefault(event.index, OutputTranscript())
        output.token_ids += event.token_ids
        output.text += event.text
        output.reasoning += event.reasoning
        output.logprobs += event.logprobs
        self.prompt_logprobs += event.prompt_logprobs
        if event.token_ids:
            self.times.append(at)

    def _finish(self, event: Finished) -> None:
        output = self.outputs.setdefault(event.index, OutputTranscript())
        output.finish_reason, output.stop_reason = event.reason.value, event.stop_reason
        self._finished[event.index] += 1
        if self._finished[event.index] > 1:
            self.disorder.append(f"output {event.index} finished {self._finished[event.index]} times")
        if event.usage is not None:
            self.completion_tokens = event.usage.completion_tokens


def differences(found: Transcript, expected: Transcript) -> list[str]:
    """Differences that a client would see, in words; empty if there is none and the events came once and in order."""
    problems = [*found.disorder]
    if found.error:
        problems.append(f"error: {found.error}")
    for index in sorted(found.outputs.keys() | expected.outputs.keys()):
        mine, other = found.outputs.get(index, OutputTranscript()), expected.outputs.get(index, OutputTranscript())
        problems += [
            f"{name} of output {index}: {getattr(mine, name)!r}, expected {getattr(other, name)!r}"
            for name in OutputTranscript.__dataclass_fields__
            if getattr(mine, name) != getattr(other, name)
        ]
    if found.prompt_logprobs != expected.prompt_logprobs:
        problems.append(
            f"{len(found.prompt_logprobs)} log-probabilities of the prompt differ from {len(expected.prompt_logprobs)}"
        )
    if found.completion_tokens != expected.completion_tokens:
        problems.append(f"usage of {found.completion_tokens} tokens, expected {expected.completion_tokens}")
    return problems
