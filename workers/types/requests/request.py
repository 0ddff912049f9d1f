"""A client's request and the chunks of its answer, as Python types. Knows nothing of tensors or protobuf."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.trace_context import TraceContext

_VALUES_AT_ONCE = 384  # log-probabilities of a prompt per message


class FinishReason(Enum):
    """Why an output ended; clients see the values."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"  # its grammar became too complex: the text may violate it


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSoFar:
    """One of a request's outputs with the tokens it has already; none in a new request."""

    index: int
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked request: the prompt fits the model, the parameters are in range, the seed is set.

    `resumed`: the unfinished outputs of a request that began on another replica, which continue after the tokens they
    have. Their text is the same as without the move. Empty for a new request.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    resumed: tuple[OutputSoFar, ...] = ()
    client_request_id: str = ""  # the client's id, if `request_id` differs from it
    trace: TraceContext | None = None  # the caller's span
    suspect: bool = False  # replicas failed while computing its next token
    cache_salt: str = ""  # only requests with equal salts share cached prefixes

    @property
    def trace_id(self) -> str:
        """Empty without a trace."""
        return self.trace.trace_id if self.trace is not None else ""

    @property
    def outputs(self) -> tuple[OutputSoFar, ...]:
        """The outputs to generate."""
        return self.resumed or tuple(OutputSoFar(index=index) for index in range(self.params.n))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities at one place: the chosen token first, then the likeliest, by descending value.

    `ranks` are 1-based, in the raw distribution.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceChunk:
    """What one sequence gained in one round, or how its request ended. Mirrors worker.proto's SequenceChunk."""

    request_id: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    drafted: int = 0  # drafts verified in this round
    accepted: int = 0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it, if any (end-of-sequence included)
    error: str = ""  # if set, the whole request failed, and this is its last chunk
    engine_lost: bool = False  # with an error: the engine ended, and another may continue the request
    cached_tokens: int = 0  # prompt tokens found in the prefix cache; set in a sequence's first chunk
    saved_s: float = 0.0  # estimated time saved by drafts in this round; negative: lost
    queued_s: float = 0.0  # wait for the request's first round; set with the request's first token
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of prompt tokens 1 and up; in the first chunk of output 0
    began: bool = False  # the request's first round starts now; all other fields are empty


def logprobs_at_once(entry: TokenLogprobs) -> int:
    """Most places per message, so that encoding or decoding it takes less than a millisecond."""
    return max(1, _VALUES_AT_ONCE // len(entry.token_ids))


def in_parts(chunk: SequenceChunk) -> Iterator[SequenceChunk]:
    """Splits a chunk with many log-probabilities of the prompt; the last part has all other fields."""
    rest = chunk.prompt_logprobs
    if rest:
        most = logprobs_at_once(rest[0])
        while len(rest) > most:
            yield SequenceChunk(request_id=chunk.request_id, index=chunk.index, prompt_logprobs=rest[:most])
            rest = rest[most:]
    yield chunk if rest is chunk.prompt_logprobs else replace(chunk, prompt_logprobs=rest)
