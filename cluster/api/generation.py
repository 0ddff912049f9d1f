"""A generation request and its events, as clients and gateways use them. Independent of protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from outrider.workers.text.assembler import TextPiece, Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.types.requests.request import FinishReason, OutputSoFar
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.tools import ToolCall, ToolCallDelta, Tools
from outrider.workers.types.requests.trace_context import TraceContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation: text, tool calls, or the result of a tool call (role "tool")."""

    role: str
    content: str | tuple[str, ...] = ""  # one text, or several text parts
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""  # of the call whose result this is
    name: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """`arguments`: additional variables of the chat template, such as `thinking`."""

    messages: Sequence[Message]
    tools: Tools = field(default_factory=Tools)
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Continues a request whose stream broke: values of its Accepted event, and each unfinished output's tokens so far.

    The new stream's events follow these tokens. Outputs that are not listed have finished.
    """

    seed: int
    fingerprint: str
    outputs: tuple[OutputSoFar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """A request that is not yet bound to a model: parameters are in range; tokens, length and seed are not set yet."""

    prompt: Prompt
    params: SamplingParams
    request_id: str = ""  # empty: the gateway generates one
    speculation_detail: bool = False
    auto_reasoning: bool = False  # reasoning is returned separately if the prompt or the output starts it
    resume: Resume | None = None
    trace: TraceContext | None = None  # of the calling span
    heartbeat_s: float = 0.0  # interval of heartbeats while there are no events; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The first event: the request was accepted. The same seed and fingerprint reproduce the text."""

    request_id: str
    seed: int
    prompt_tokens: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """New tokens and text of one output since its last event."""

    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    reasoning: str = ""  # the text before </think>, if reasoning is returned separately
    tool_calls: tuple[ToolCallDelta, ...] = ()
    drafted: int = 0  # drafts verified in the rounds of this delta, if speculation_detail was requested
    accepted: int = 0
    pieces: tuple[
        TextPiece, ...
    ] = ()  # text and reasoning again, split by whether they were drafted; with speculation_detail
    logprobs: tuple[dict[int, Logprob], ...] = ()  # one per token, by token id; the chosen token comes first
    prompt_logprobs: tuple[dict[int, Logprob], ...] = ()  # of prompt tokens 1 and up, in output 0's first events


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One output ended. The request's last event carries its usage."""

    index: int
    reason: FinishReason
    stop_reason: int | str | None = None  # the stop id or stop string that ended it; None at end-of-sequence
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request failed after it was accepted. Always the last event."""

    message: str
    resumable: bool = False  # the gateway is shutting down, and another gateway can resume the request


Event = Accepted | Output | Finished | Failed


@dataclass(slots=True, kw_only=True)
class Completion:
    """One finished output."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str = ""  # "stop", "length", "cancelled" or "error"
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A complete answer; `token_ids`, `text` and the reasons are the first output's."""

    request_id: str
    seed: int
    prompt_tokens: int
    fingerprint: str
    outputs: list[Completion]
    usage: Usage
    prompt_logprobs: list[dict[int, Logprob]] = field(default_factory=list)  # of prompt tokens 1 and up, if requested

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def reasoning(self) -> str:
        return self.outputs[0].reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.outputs[0].tool_calls

    @property
    def finish_reason(self) -> str:
        return self.outputs[0].finish_reason

    @property
    def stop_reason(self) -> int | str | None:
        return self.outputs[0].stop_reason
