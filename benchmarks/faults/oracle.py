"""What a stream said, and how that differs from what its undisturbed twin said. No network, no clock of its own."""

from collections import Counter
from dataclasses import dataclass, field

from outrider.cluster.generation import Accepted, Event, Failed, Finished, Output
from outrider.workers.outputs import Logprob

Logprobs = list[dict[int, Logprob]]


@dataclass(slots=True)
class HeardOutput:
    """One output of a stream, added up."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    logprobs: Logprobs = field(default_factory=list)
    finish_reason: str = ""
    stop_reason: int | str | None = None


class Heard:
    """A stream's events, added up as they come, with what is wrong with their order."""

    def __init__(self) -> None:
        self.outputs: dict[int, HeardOutput] = {}
        self.prompt_logprobs: Logprobs = []
        self.completion_tokens: int | None = None  # of the usage, which the last event carries
        self.error = ""
        self.events = 0
        self.times: list[float] = []  # of the events that had tokens
        self.disorder: list[str] = []
        self._accepted = 0
        self._finished: Counter[int] = Counter()

    @property
    def tokens(self) -> int:
        return sum(len(output.token_ids) for output in self.outputs.values())

    def add(self, event: Event, at: float) -> None:
        """`at`: seconds on any clock that only rises."""
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
            self.disorder.append(f"output {event.index} goes on after its end")
        output = self.outputs.setdefault(event.index, HeardOutput())
        output.token_ids += event.token_ids
        output.text += event.text
        output.reasoning += event.reasoning
        output.logprobs += event.logprobs
        self.prompt_logprobs += event.prompt_logprobs
        if event.token_ids:
            self.times.append(at)

    def _finish(self, event: Finished) -> None:
        output = self.outputs.setdefault(event.index, HeardOutput())
        output.finish_reason, output.stop_reason = event.reason.value, event.stop_reason
        self._finished[event.index] += 1
        if self._finished[event.index] > 1:
            self.disorder.append(f"output {event.index} finished {self._finished[event.index]} times")
        if event.usage is not None:
            self.completion_tokens = event.usage.completion_tokens


def differences(heard: Heard, twin: Heard) -> list[str]:
    """What a client would see; empty if the two are the same, each event once and in order."""
    found = [*heard.disorder]
    if heard.error:
        found.append(f"error: {heard.error}")
    for index in sorted(heard.outputs.keys() | twin.outputs.keys()):
        mine, other = heard.outputs.get(index, HeardOutput()), twin.outputs.get(index, HeardOutput())
        found += [
            f"{name} of output {index}: {getattr(mine, name)!r}, and not {getattr(other, name)!r}"
            for name in HeardOutput.__dataclass_fields__
            if getattr(mine, name) != getattr(other, name)
        ]
    if heard.prompt_logprobs != twin.prompt_logprobs:
        found.append(
            f"{len(heard.prompt_logprobs)} log-probabilities of the prompt differ from {len(twin.prompt_logprobs)}"
        )
    if heard.completion_tokens != twin.completion_tokens:
        found.append(f"usage of {heard.completion_tokens} tokens, and not {twin.completion_tokens}")
    return found
