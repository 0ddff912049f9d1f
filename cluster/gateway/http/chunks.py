"""Chunks of OpenAI's streams, shared by completions and chats. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from outrider.cluster.api.generation import Output
from outrider.cluster.gateway.http import sse
from outrider.cluster.gateway.http.answer import speculation_of, usage_of
from outrider.cluster.gateway.http.errors import Problem
from outrider.cluster.gateway.http.types import SamplingFields
from outrider.workers.text.assembler import Usage


class Chunks:
    """One stream's chunks. `head`: the fields of every chunk. `usage`: the tokens so far."""

    def __init__(self, request: SamplingFields, head: Mapping[str, Any]) -> None:
        options = request.stream_options
        self.include_usage = bool(options and options.include_usage)
        self._continuous_usage = bool(options and options.continuous_usage_stats)
        self._return_token_ids = bool(request.return_token_ids)
        self._speculation_detail = bool(request.speculation_detail)
        self.head = dict(head)
        self.usage = Usage()

    def choice(
        self,
        index: int,
        content: Mapping[str, Any],
        *,
        logprobs: Mapping[str, Any] | None = None,
        finish: str | None = None,
        stop: int | str | None = None,
        output: Output | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> bytes:
        """`content`: the choice's `text` or `delta`, of `output`. `more`: further fields of the chunk."""
        choice: dict[str, Any] = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
        if finish is not None:
            choice["stop_reason"] = stop
        if self._return_token_ids:
            choice["token_ids"] = list(output.token_ids) if output else []
        if self._speculation_detail and output:
            choice["speculation"] = speculation_of(output)
        usage = {"usage": usage_of(self.usage)} if self._continuous_usage else {}
        return sse.data({**self.head, "choices": [choice], **usage, **(more or {})})

    def end(self, usage: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> Iterator[bytes]:
        if self.include_usage:
            yield sse.data({**self.head, "choices": [], "usage": usage, "metrics": metrics})
        yield sse.DONE

    def failure(self, problem: Problem) -> Iterator[bytes]:
        yield sse.data(problem.openai())
        yield sse.DONE
