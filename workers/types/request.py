"""What a client asked, and what it hears back, inside the process. Knows nothing of tensors or the wire."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from outrider.workers.types.sampling_params import SamplingParams
from outrider.workers.types.trace_context import TraceContext

_VALUES_AT_ONCE = 384  # log-probabilities of a prompt in one message


class FinishReason(Enum):
    """Why an output ended; the values are the words clients see."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"  # its grammar became too complex to follow: the text may not conform


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSoFar:
    """One of a request's outputs, and the tokens it has already: none in a new request."""

    index: int
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked request: the prompt fits the model, the parameters are in range, the seed is drawn.

    `resumed` continues what another replica began: its unfinished outputs, and no others, go on behind the tokens
    they have, with the text they would have had. Empty for a new request.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    resumed: tuple[OutputSoFar, ...] = ()
    client_request_id: str = ""  # the client's own name for it, where `request_id` is another
    trace: TraceContext | None = None  # whose span asks for it
    suspect: bool = False  # replicas were lost as they computed its next token
    cache_salt: str = ""  # cached prefixes are shared among requests with an equal one

    @property
    def trace_id(self) -> str:
        """Empty if it is part of no trace."""
        return self.trace.trace_id if self.trace is not None else ""

    @property
    def outputs(self) -> tuple[OutputSoFar, ...]:
        """The outputs to generate."""
        return self.resumed or tuple(OutputSoFar(index=index) for index in range(self.params.n))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities at one token: the chosen token first, then the likeliest, by descending value.

    `ranks` are 1-based places in the raw distribution.
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
    stop_token_id: int | None = None  # the token that ended it, when one did (end-of-sequence included)
    error: str = ""  # set: the whole request failed, and this is its last chunk
    engine_lost: bool = False  # with an error: the engine ended, and another may go on with the request
    cached_tokens: int = 0  # prompt tokens found in the prefix cache; set in a sequence's first chunk
    saved_s: float = 0.0  # time that drafts saved it in this round, as modelled; below 0: cost it
    queued_s: float = 0.0  # its request waited so long for its first round; set with the request's first token
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of prompt tokens 1 and up; in the first chunk of output 0
    began: bool = False  # its request's first round starts now; such a chunk says nothing else


def logprobs_at_once(entry: TokenLogprobs) -> int:
    """How many places like this one a message may have, so that it takes less than a millisecond to make or read."""
    return max(1, _VALUES_AT_ONCE // len(entry.token_ids))


def in_parts(chunk: SequenceChunk) -> Iterator[SequenceChunk]:
    """The same in all, with few log-probabilities of the prompt in each; all else is in the last."""
    rest = chunk.prompt_logprobs
    if rest:
        most = logprobs_at_once(rest[0])
        while len(rest) > most:
            yield SequenceChunk(request_id=chunk.request_id, index=chunk.index, prompt_logprobs=rest[:most])
            rest = rest[most:]
    yield chunk if rest is chunk.prompt_logprobs else replace(chunk, prompt_logprobs=rest)
