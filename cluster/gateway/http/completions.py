"""/v1/completions: OpenAI's legacy Completions API. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from outrider.cluster.api.generation import (
    Accepted,
    Completion,
    Event,
    Finished,
    GenerateCall,
    Generation,
    Output,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from outrider.cluster.gateway.http.answer import (
    candidates,
    clamped,
    finish_reason,
    metrics_of,
    now,
    total,
    usage_of,
)
from outrider.cluster.gateway.http.chunks import Chunks
from outrider.cluster.gateway.http.errors import Problem
from outrider.cluster.gateway.http.sampling import sampled
from outrider.cluster.gateway.http.types import CompletionRequest
from outrider.workers.text.assembler import Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.text.tokenizer import Tokenizer

MAX_PROMPTS = 256
DEFAULT_MAX_TOKENS = 16
Place = tuple[int, dict[int, Logprob] | None]  # a token and its log-probabilities; None for a prompt's first token


class CompletionAnswer:
    """The choices of all prompts: prompt 0's n outputs first, then prompt 1's."""

    def __init__(self, request: CompletionRequest, model: str, identity: str, tokenizer: Tokenizer | None) -> None:
        """ValueError names the field that is invalid."""
        self._request, self._tokenizer = request, tokenizer
        self._head = {"id": f"cmpl-{identity}", "object": "text_completion", "created": now(), "model": model}
        self._chunks = Chunks(request, self._head)
        self.streams = bool(request.stream)
        self.calls = _calls(request, identity)
        self._n = self.calls[0].params.n
        self._usages: list[Usage] = []
        self._offsets: defaultdict[int, int] = defaultdict(int)  # by choice: where its next token begins in its text
        self._prompt_places: defaultdict[int, int] = defaultdict(
            lambda: 1
        )  # by prompt: tokens sent with log-probabilities

    def chunks(self, number: int, event: Event, prompt: Sequence[int]) -> Iterator[bytes]:
        match event:
            case Accepted():
                self._chunks.usage.prompt_tokens += event.prompt_tokens
                self._chunks.head["system_fingerprint"] = event.fingerprint
                if self._request.echo:
                    yield from self._echoed(number, prompt)
            case Output(prompt_logprobs=known) if known:
                yield from self._prompt_logprobs(number, prompt, known)
            case Output() if not self._echo_only:
                self._chunks.usage.completion_tokens += len(event.token_ids)
                index = number * self._n + event.index
                if event.text or event.logprobs or (self._request.return_token_ids and event.token_ids):
                    places = list(zip(event.token_ids, event.logprobs, strict=False))
                    logprobs = None if self._request.logprobs is None else self._logprobs(index, places)
                    yield self._chunks.choice(index, {"text": event.text}, logprobs=logprobs, output=event)
            case Finished():
                reason = "length" if self._echo_only else finish_reason(event.reason)
                more: dict[str, Any] = {}
                if event.usage is not None:
                    self._usages.append(event.usage)
                    if not self._chunks.include_usage and len(self._usages) == len(self.calls):
                        more["metrics"] = metrics_of(self._usages, self._n)
                index = number * self._n + event.index
                yield self._chunks.choice(index, {"text": ""}, finish=reason, stop=event.stop_reason, more=more)
            case _:
                return

    def end(self) -> Iterator[bytes]:
        return self._chunks.end(usage_of(total(self._usages)), metrics_of(self._usages, self._n))

    def failure(self, problem: Problem) -> Iterator[bytes]:
        return self._chunks.failure(problem)

    def whole(self, generations: Sequence[Generation], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        choices = [
            self._choice(number * self._n + index, generation, output, prompt)
            for number, (generation, prompt) in enumerate(zip(generations, prompts, strict=True))
            for index, output in enumerate(generation.outputs)
        ]
        usages = [generation.usage for generation in generations]
        usage = usages[0] if len(usages) == 1 else total(usages)
        if self._echo_only:
            usage = replace(usage, completion_tokens=0)
        first = generations[0]
        return {
            **self._head,
            "choices": choices,
            "usage": usage_of(usage),
            "system_fingerprint": first.fingerprint,
            "metrics": metrics_of(usages, self._n),
            "seed": first.seed,
        }

    @property
    def _echo_only(self) -> bool:
        """The engine generates at least one token, which is left out of the response."""
        return self._request.max_tokens == 0

    def _indices(self, number: int) -> range:
        """Of a prompt's choices."""
        return range(number * self._n, (number + 1) * self._n)

    def _echoed(self, number: int, prompt: Sequence[int]) -> Iterator[bytes]:
        text = self._prompt_text(number, prompt)
        wants = self._request.logprobs is not None
        for index in self._indices(number):
            self._begin(index, text, prompt)
            logprobs = self._logprobs(index, [(prompt[0], None)]) if wants else None
            yield self._chunks.choice(index, {"text": text}, logprobs=logprobs)

    def _prompt_logprobs(
        self, number: int, prompt: Sequence[int], known: Sequence[dict[int, Logprob]]
    ) -> Iterator[bytes]:
        first = self._prompt_places[number]
        self._prompt_places[number] += len(known)
        places = list(zip(prompt[first:], known, strict=False))
        for index in self._indices(number):
            yield self._chunks.choice(index, {"text": ""}, logprobs=self._logprobs(index, places))

    def _choice(self, index: int, generation: Generation, output: Completion, prompt: Sequence[int]) -> dict[str, Any]:
        text, places = "", list[Place]()
        if self._request.echo:
            text = self._prompt_text(index // self._n, prompt)
            self._begin(index, text, prompt)
            places = list(zip(prompt, [None, *generation.prompt_logprobs], strict=False))
        if not self._echo_only:
            text += output.text
            places += zip(output.token_ids, output.logprobs, strict=False)
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": None if self._request.logprobs is None else self._logprobs(index, places),
            "finish_reason": "length" if self._echo_only else finish_reason(output.finish_reason),
            "stop_reason": output.stop_reason,
        }
        if self._request.return_token_ids:
            choice |= {"token_ids": output.token_ids, "prompt_token_ids": list(prompt)}
        return choice

    def _prompt_text(self, number: int, prompt: Sequence[int]) -> str:
        given = self.calls[number].prompt
        if isinstance(given, TextPrompt):
            return given.text
        return self._tokenizer.decode(prompt, skip_special_tokens=False) if self._tokenizer else ""

    def _begin(self, index: int, text: str, prompt: Sequence[int]) -> None:
        """The prompt's text does not contain a special token that the tokenizer put before it."""
        first = self._token_text(prompt[0])
        if self._tokenizer and self._tokenizer.is_special(prompt[0]) and not text.startswith(first):
            self._offsets[index] = -len(first)

    def _logprobs(self, index: int, places: Sequence[Place]) -> dict[str, Any]:
        """OpenAI's legacy format, with parallel lists. `text_offset` is relative to the choice's text."""
        count, texts, offsets = self._request.logprobs or 0, [], []
        tops: list[dict[str, float] | None] = []
        for token_id, known in places:
            text = self._token_text(token_id)
            texts.append(text)
            offsets.append(max(0, self._offsets[index]))
            self._offsets[index] += len(text)
            if known is None:
                tops.append(None)
            else:
                found = {self._token_text(n): clamped(one) for n, one in candidates(known, count)}
                tops.append({text: clamped(known[token_id]), **found})
        return {
            "tokens": texts,
            "token_logprobs": [None if known is None else clamped(known[n]) for n, known in places],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _token_text(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id) if self._tokenizer else f"token_id:{token_id}"


def _calls(request: CompletionRequest, identity: str) -> list[GenerateCall]:
    if request.suffix:
        raise ValueError("suffix is not supported: the model only continues a text")
    if request.best_of not in (None, request.n or 1):
        raise ValueError(f"best_of must be absent or equal to n, got {request.best_of}")
    if request.stream_options is not None and not request.stream:
        raise ValueError("stream_options requires stream")
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and request.echo:
        max_tokens = 1
    echoed = request.logprobs if request.echo else None
    params = sampled(request, max_tokens=max_tokens, logprobs=request.logprobs, prompt_logprobs=echoed)
    prompts = _prompts(request.prompt)
    names = [identity] if len(prompts) == 1 else [f"{identity}-{number}" for number in range(len(prompts))]
    detail = bool(request.speculation_detail)
    return [
        GenerateCall(prompt=one, params=params, request_id=name, speculation_detail=detail)
        for one, name in zip(prompts, names, strict=True)
    ]


def _prompts(given: str | list[int] | list[str] | list[list[int]]) -> list[Prompt]:
    """A text, a list of token ids, or a list of either."""
    if isinstance(given, str):
        return [TextPrompt(given)]
    if not given:
        raise ValueError("prompt must not be empty")
    if isinstance(given[0], int):
        return [TokenPrompt(given)]
    if len(given) > MAX_PROMPTS:
        raise ValueError(f"prompt must be at most {MAX_PROMPTS} prompts, got {len(given)}")
    return [TextPrompt(one) if isinstance(one, str) else TokenPrompt(one) for one in given]
