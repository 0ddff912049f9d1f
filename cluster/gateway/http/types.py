"""Request bodies as pydantic models. A field that is absent or null takes its default. Unknown fields are ignored, as
in vLLM, and logged."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler

SpeculationMode = Literal["auto", "off", "fixed"]
T = TypeVar("T")


class _FailFast:
    """pydantic's own cannot be part of a union."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> Any:  # CoreSchema
        return {**handler(source), "fail_fast": True}


# A list that is checked up to its first error: an error for each of a million entries would take gigabytes.
List = Annotated[list[T], _FailFast()]


class Body(BaseModel):
    """Base class of request bodies."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @property
    def ignored(self) -> list[str]:
        """Names of unknown fields."""
        return sorted(self.model_extra or ())

    @property
    def names(self) -> dict[str, str]:
        """What this body calls fields that have another name in SamplingParams and GenerateCall, by that name."""
        return {}


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Body):
    """OpenAI's `json_schema`. Its field `schema` is read through `value`: the name is an attribute of BaseModel."""

    name: str | None = None

    @property
    def value(self) -> Any:
        return (self.model_extra or {}).get("schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Speculation(Body):
    """`depth` requires mode "fixed", or no mode."""

    mode: SpeculationMode | None = None
    depth: int | None = None
    drafter: str | None = None


class SamplingFields(Body):
    """Fields shared by completions and chats: OpenAI's, then vLLM's, then outrider's."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    seed: int | None = None
    stop: str | List[str] | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: List[int] | None = None
    ignore_eos: bool | None = None
    bad_words: List[str] | None = None
    allowed_token_ids: List[int] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    request_id: str | None = None

    speculation: str | int | Speculation | None = None
    drafter: str | None = None
    speculation_detail: bool | None = None

    @property
    def _names_of_format(self) -> dict[str, str]:
        return {"structured_outputs": "response_format"} if self.structured_outputs is None else {}


class CompletionRequest(SamplingFields):
    prompt: str | List[int] | List[str] | List[List[int]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None

    @property
    def names(self) -> dict[str, str]:
        return {"token_ids": "prompt", **self._names_of_format}


class ChatRequest(SamplingFields):
    messages: List[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: List[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    @property
    def names(self) -> dict[str, str]:
        length = {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
        return {"logprobs": "top_logprobs", **length, **self._names_of_format}


class Thinking(Body):
    type: str = "enabled"


class MessagesRequest(Body):
    """Of Anthropic's Messages API."""

    model: str | None = None
    max_tokens: int | None = None
    messages: List[dict[str, Any]]
    system: str | List[dict[str, Any]] | None = None
    stop_sequences: List[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: List[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    seed: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    speculation: str | int | Speculation | None = None
    drafter: str | None = None
    request_id: str | None = None

    @property
    def names(self) -> dict[str, str]:
        return {"stop": "stop_sequences"}


class TextFormat(JsonSchema):
    """A ResponseFormat whose schema is not nested in `json_schema`."""

    type: Literal["text", "json_object", "json_schema"]


class TextOptions(Body):
    format: TextFormat | None = None


class ResponsesRequest(Body):
    """Of OpenAI's Responses API. Requests that need stored responses are rejected."""

    model: str | None = None
    input: str | List[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tools: List[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    include: List[str] | None = None
    user: str | None = None

    seed: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    speculation: str | int | Speculation | None = None
    drafter: str | None = None
    request_id: str | None = None

    @property
    def names(self) -> dict[str, str]:
        formats = {"structured_outputs": "text.format", "response_format": "text.format"}
        return {"max_tokens": "max_output_tokens", "messages": "input", **formats}


class TokenizeRequest(Body):
    """Of vLLM's /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: List[dict[str, Any]] | None = None
    tools: List[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: List[int]
