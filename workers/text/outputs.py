"""The results of LLM. Names are vLLM's."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from outrider.workers.text.assembler import OutputDelta, Usage
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.requests.request import TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """One candidate token at one place, under the raw logits; `rank` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationSummary:
    """Speculation figures of one output. `accepted_per_position[j]`: rounds whose drafts 1..j+1 were all accepted."""

    rounds: int
    drafted: int  # drafts verified
    accepted: int
    accepted_per_position: list[int]
    drafted_per_position: list[int]  # element j: rounds that verified at least j+1 drafts
    rounds_per_depth: list[int]  # element d: rounds that verified d drafts
    estimated_time_saved_s: float  # compared with the modelled time without drafts; negative: lost


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One of a request's n outputs."""

    index: int
    seed: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""  # with SamplingParams.reasoning: the text before </think>
    finish_reason: str | None = None  # "stop", "length", "cancelled" or "error"
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    speculation: SpeculationSummary | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """One prompt and its outputs."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # None for the first token


class OutputCollector:
    """Collects one output's deltas."""

    def __init__(self, index: int, seed: int, tokenizer: Tokenizer | None, wants_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._usage = Usage()
        self.output = CompletionOutput(index=index, seed=seed, logprobs=[] if wants_logprobs else None)

    def add(self, delta: OutputDelta) -> None:
        output = self.output
        output.token_ids.extend(delta.token_ids)
        output.text += delta.text
        output.reasoning += delta.reasoning
        if output.logprobs is not None:
            output.logprobs.extend(logprobs_by_token(delta.logprobs, self._tokenizer))
        if delta.token_ids:
            self._usage.add_round(len(delta.token_ids), delta.drafted, delta.accepted, delta.saved_s)
        if delta.finish_reason is not None:
            output.finish_reason, output.stop_reason = delta.finish_reason.value, delta.stop_reason
            output.speculation = self._summary()

    def _summary(self) -> SpeculationSummary:
        usage = self._usage
        return SpeculationSummary(
            rounds=usage.rounds,
            drafted=usage.drafted,
            accepted=usage.accepted,
            accepted_per_position=list(usage.accepted_per_position),
            drafted_per_position=list(usage.drafted_per_position),
            rounds_per_depth=list(usage.rounds_per_depth),
            estimated_time_saved_s=usage.estimated_time_saved_s,
        )


def logprobs_by_token(entries: Iterable[TokenLogprobs], tokenizer: Tokenizer | None) -> list[dict[int, Logprob]]:
    """Each place's candidates by token id, the chosen token first. Their text is empty without a tokenizer."""

    def decode(token_id: int) -> str:
        return tokenizer.token_text(token_id) if tokenizer else ""

    return [
        {
            token_id: Logprob(logprob=value, rank=rank, decoded_token=decode(token_id))
            for token_id, value, rank in zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True)
        }
        for entry in entries
    ]
