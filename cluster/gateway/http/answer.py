"""The interface of generation responses, and the fields that several of them share. Pure."""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from outrider.cluster.api.errors import InvalidRequestError
from outrider.cluster.api.generation import Event, GenerateCall, Generation, Output
from outrider.cluster.gateway.http.errors import Problem
from outrider.workers.text.assembler import Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.requests.request import FinishReason

LEAST_LOGPROB = -9999.0  # JSON has no infinity


class Answer(Protocol):
    """The response to one HTTP request: `whole`, or for a stream the `chunks` of each event and then `end`.

    `number`: a call's index in `calls`, `prompts` and `generations`.
    """

    @property
    def calls(self) -> Sequence[GenerateCall]: ...

    @property
    def streams(self) -> bool: ...

    def chunks(self, number: int, event: Event, prompt: Sequence[int]) -> Iterator[bytes]: ...

    def end(self) -> Iterator[bytes]: ...

    def failure(self, problem: Problem) -> Iterator[bytes]:
        """The error as the last event of a stream that has started."""
        ...

    def whole(self, generations: Sequence[Generation], prompts: Sequence[Sequence[int]]) -> dict[str, Any]: ...


def now() -> int:
    return int(time.time())


def finish_reason(reason: FinishReason | str, *, called: bool = False) -> str:
    """OpenAI's finish reason. `called`: the output has tool calls. InvalidRequestError if the grammar failed."""
    word = reason.value if isinstance(reason, FinishReason) else reason
    if word == FinishReason.ERROR.value:
        raise InvalidRequestError("the grammar became too complex to follow")
    if word == FinishReason.LENGTH.value:
        return "length"
    return "tool_calls" if called else "stop"


def usage_of(usage: Usage, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Usage in OpenAI's format."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def total(usages: Sequence[Usage]) -> Usage:
    """The sum of several calls' usage, without the counts per draft position."""
    names = ("prompt_tokens", "cached_tokens", "completion_tokens")
    return Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in names})


def metrics_of(usages: Sequence[Usage], outputs: int) -> dict[str, Any] | None:
    """vLLM's `metrics.speculative_decoding`. None for requests with several outputs, or without drafts."""
    if len(usages) != 1 or outputs != 1 or not usages[0].drafted:
        return None
    usage = usages[0]
    steps = usage.drafted_per_position[0]
    at_least = [steps, *usage.accepted_per_position]  # [j]: rounds that accepted j drafts or more
    at_least += [0] * (len(usage.drafted_per_position) + 2 - len(at_least))
    return {
        "speculative_decoding": {
            "mean_acceptance_length": 1 + usage.accepted / steps,
            "draft_acceptance_rate": usage.accepted / usage.drafted,
            "acceptance_histogram": [more - fewer for more, fewer in itertools.pairwise(at_least)],
            "num_spec_steps": steps,
            "num_draft_tokens": usage.drafted,
            "num_accepted_draft_tokens": usage.accepted,
            "num_spec_tokens": len(usage.drafted_per_position),
            "rounds": usage.rounds,
            "rounds_per_depth": list(usage.rounds_per_depth),
            "estimated_time_saved_s": usage.estimated_time_saved_s,
        }
    }


def speculation_of(event: Output) -> dict[str, Any]:
    """A chunk's `speculation`: drafts of its rounds, and its text in drafted and other pieces."""
    pieces = [
        {"reasoning" if piece.reasoning else "content": piece.text, "drafted": piece.drafted} for piece in event.pieces
    ]
    return {"drafted": event.drafted, "accepted": event.accepted, "pieces": pieces}


def reasoning_tokens(token_ids: Sequence[int], tokenizer: Tokenizer | None, *, thought: bool) -> int:
    """Number of tokens up to and including `</think>`. `thought`: whether the output has reasoning."""
    end = None if tokenizer is None else tokenizer.reasoning_ids[1]
    if not thought:
        return 0
    return token_ids.index(end) + 1 if end in token_ids else len(token_ids)


def clamped(entry: Logprob) -> float:
    return max(entry.logprob, LEAST_LOGPROB)


def candidates(logprobs: dict[int, Logprob], count: int) -> list[tuple[int, Logprob]]:
    """The `count` most likely tokens, by rank. Includes the sampled token only if its rank is at most `count`."""
    return sorted(((n, one) for n, one in logprobs.items() if one.rank <= count), key=lambda found: found[1].rank)
