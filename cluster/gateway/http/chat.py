"""/v1/chat/completions: OpenAI's Chat Completions API, with tools and reasoning. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from outrider.cluster.api.chat_shapes import messages_of, tools_of
from outrider.cluster.api.generation import Accepted, ChatPrompt, Event, Finished, GenerateCall, Generation, Output
from outrider.cluster.gateway.http.answer import (
    candidates,
    clamped,
    finish_reason,
    metrics_of,
    now,
    reasoning_tokens,
    usage_of,
)
from outrider.cluster.gateway.http.chunks import Chunks
from outrider.cluster.gateway.http.errors import Problem
from outrider.cluster.gateway.http.sampling import sampled
from outrider.cluster.gateway.http.types import ChatRequest
from outrider.workers.text.assembler import Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.requests.tools import ToolCallDelta


class ChatAnswer:
    """A chat completion with n choices."""

    def __init__(self, request: ChatRequest, model: str, identity: str, tokenizer: Tokenizer | None) -> None:
        """ValueError names the field that is invalid."""
        self._request, self._tokenizer = request, tokenizer
        self._head: dict[str, Any] = {"id": f"chatcmpl-{identity}", "created": now(), "model": model}
        self._chunks = Chunks(request, {**self._head, "object": "chat.completion.chunk"})
        self.streams = bool(request.stream)
        self.calls = [chat_call(request, identity)]
        self._n = self.calls[0].params.n
        self._usage = Usage()
        self._tokens: defaultdict[int, list[int]] = defaultdict(list)
        self._thought: defaultdict[int, bool] = defaultdict(bool)
        self._called: defaultdict[int, bool] = defaultdict(bool)

    def chunks(self, number: int, event: Event, prompt: Sequence[int]) -> Iterator[bytes]:
        match event:
            case Accepted():
                self._chunks.usage.prompt_tokens = event.prompt_tokens
                self._chunks.head["system_fingerprint"] = event.fingerprint
                for index in range(self._n):
                    yield self._chunks.choice(index, {"delta": {"role": "assistant", "content": ""}})
            case Output():
                self._count(event)
                shown = event if self._request.include_reasoning is not False else _without_reasoning(event)
                delta = _delta(shown)
                logprobs = self._logprobs(event.token_ids, event.logprobs)
                if delta or logprobs or self._request.return_token_ids:
                    yield self._chunks.choice(event.index, {"delta": delta}, logprobs=logprobs, output=shown)
            case Finished():
                reason = finish_reason(event.reason, called=self._called[event.index])
                last = {}
                if event.usage is not None:
                    self._usage = event.usage
                    last = {} if self._chunks.include_usage else {"metrics": metrics_of([event.usage], self._n)}
                content: dict[str, Any] = {"delta": {}}
                yield self._chunks.choice(event.index, content, finish=reason, stop=event.stop_reason, more=last)
            case _:
                return

    def _count(self, event: Output) -> None:
        self._chunks.usage.completion_tokens += len(event.token_ids)
        self._tokens[event.index] += event.token_ids
        self._thought[event.index] |= bool(event.reasoning)
        self._called[event.index] |= bool(event.tool_calls)

    def end(self) -> Iterator[bytes]:
        thought = sum(
            reasoning_tokens(tokens, self._tokenizer, thought=self._thought[index])
            for index, tokens in self._tokens.items()
        )
        return self._chunks.end(usage_of(self._usage, thought), metrics_of([self._usage], self._n))

    def failure(self, problem: Problem) -> Iterator[bytes]:
        return self._chunks.failure(problem)

    def whole(self, generations: Sequence[Generation], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        (generation,), choices, thought = generations, [], 0
        for index, output in enumerate(generation.outputs):
            thought += reasoning_tokens(output.token_ids, self._tokenizer, thought=bool(output.reasoning))
            message: dict[str, Any] = {"role": "assistant", "content": output.text or None, "refusal": None}
            if output.reasoning and self._request.include_reasoning is not False:
                message |= {"reasoning": output.reasoning, "reasoning_content": output.reasoning}
            if output.tool_calls:
                message["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                    for call in output.tool_calls
                ]
            else:
                message["content"] = output.text
            choice: dict[str, Any] = {
                "index": index,
                "message": message,
                "logprobs": self._logprobs(output.token_ids, output.logprobs),
                "finish_reason": finish_reason(output.finish_reason, called=bool(output.tool_calls)),
                "stop_reason": output.stop_reason,
            }
            choices.append(choice | ({"token_ids": output.token_ids} if self._request.return_token_ids else {}))
        answer = {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage_of(generation.usage, thought),
            "system_fingerprint": generation.fingerprint,
            "metrics": metrics_of([generation.usage], self._n),
            "seed": generation.seed,
        }
        return answer | ({"prompt_token_ids": list(prompts[0])} if self._request.return_token_ids else {})

    def _logprobs(self, token_ids: Sequence[int], places: Sequence[Mapping[int, Logprob]]) -> dict[str, Any] | None:
        if not self._request.logprobs or not places:
            return None
        content = []
        for token_id, place in zip(token_ids, places, strict=False):
            top = [self._token(n, one) for n, one in candidates(dict(place), self._request.top_logprobs or 0)]
            content.append({**self._token(token_id, place[token_id]), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, entry: Logprob) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token_id) if self._tokenizer else b""
        return {"token": entry.decoded_token, "logprob": clamped(entry), "bytes": list(raw)}


def _without_reasoning(event: Output) -> Output:
    return replace(event, reasoning="", pieces=tuple(piece for piece in event.pieces if not piece.reasoning))


def _delta(event: Output) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if event.text:
        delta["content"] = event.text
    if event.reasoning:
        delta |= {"reasoning": event.reasoning, "reasoning_content": event.reasoning}
    if event.tool_calls:
        delta["tool_calls"] = [tool_call_delta(call) for call in event.tool_calls]
    return delta


def tool_call_delta(call: ToolCallDelta) -> dict[str, Any]:
    """The first delta of a call has its id, type and name."""
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def chat_call(request: ChatRequest, identity: str) -> GenerateCall:
    """ValueError names the field that is invalid."""
    if request.stream_options is not None and not request.stream:
        raise ValueError("stream_options requires stream")
    if request.top_logprobs is not None and not request.logprobs:
        raise ValueError("top_logprobs requires logprobs")
    parallel = request.parallel_tool_calls is not False
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return GenerateCall(
        prompt=ChatPrompt(
            messages_of(request.messages),
            tools_of(request.tools, request.tool_choice, parallel=parallel),
            template_arguments(request.chat_template_kwargs, request.reasoning_effort),
        ),
        params=sampled(request, max_tokens=max_tokens, logprobs=logprobs),
        request_id=identity,
        speculation_detail=bool(request.speculation_detail),
        auto_reasoning=True,
    )


def template_arguments(given: Mapping[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """OpenAI's reasoning effort sets `thinking`, for templates with that variable. `given` takes precedence."""
    from_effort = {} if effort is None else {"reasoning_effort": effort, "thinking": effort != "none"}
    return {**from_effort, **(given or {})}
