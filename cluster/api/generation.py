"""One generation as client and gateway see it: what is asked, and the events that answer. Knows nothing of protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from outrider.workers.text.assembler import TextPiece, Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.types.request import FinishReason, OutputSoFar
from outrider.workers.types.sampling_params import SamplingParams
from outrider.workers.types.tools import ToolCall, ToolCallDelta, Tools
from outrider.workers.types.trace_context import TraceContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation: what was said, or called, or what a call gave (role "tool")."""

    role: str
    content: str | tuple[str, ...] = ""  # a text, or its parts
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
    """`arguments`: variables of the chat template's own, such as `thinking`."""

    messages: Sequence[Message]
    tools: Tools = field(default_factory=Tools)
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Continues a request whose stream broke: what its Accepted event said, and each unfinished output so far.

    Events are deltas behind that. Outputs that are not named have finished.
    """

    seed: int
    fingerprint: str
    outputs: tuple[OutputSoFar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """A request before it meets a model: parameters are in range; tokens, length and seed are not settled yet."""

    prompt: Prompt
    params: SamplingParams
    request_id: str = ""  # empty: the gateway draws one
    speculation_detail: bool = False
    auto_reasoning: bool = False  # reasoning comes apart if prompt or output begins it
    resume: Resume | None = None
    trace: TraceContext | None = None  # whose span asks for it
    heartbeat_s: float = 0.0  # a sign of life whenever no event comes for so long; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The first event: the request is in the engine's hands. The same seed and fingerprint give the same text again."""

    request_id: str
    seed: int
    prompt_tokens: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one output gained since its last event."""

    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    reasoning: str = ""  # what comes before </think>, where that is to be given apart
    tool_calls: tuple[ToolCallDelta, ...] = ()
    drafted: int = 0  # drafts verified in the rounds of this delta, if speculation_detail was asked for
    accepted: int = 0
    pieces: tuple[TextPiece, ...] = ()  # text and reasoning again, by whether drafts said it; with speculation_detail
    logprobs: tuple[dict[int, Logprob], ...] = ()  # one per token, by token id; the chosen token comes first
    prompt_logprobs: tuple[dict[int, Logprob], ...] = ()  # of prompt tokens 1 and up, with the first of output 0


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
    resumable: bool = False  # the gateway left, and another may go on with the request


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
    """A whole answer; `token_ids`, `text` and the reasons are the first output's."""

    request_id: str
    seed: int
    prompt_tokens: int
    fingerprint: str
    outputs: list[Completion]
    usage: Usage
    prompt_logprobs: list[dict[int, Logprob]] = field(default_factory=list)  # of prompt tokens 1 and up, if asked for

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
