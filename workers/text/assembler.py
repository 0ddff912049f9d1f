"""Turns an engine's chunks into deltas for clients: text, stop strings, finish reasons, usage. For LLM and gateway."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from outrider.workers.text.detokenizer import Detokenizer
from outrider.workers.text.stops import StopStrings
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.text.tool_calls import ToolCallReader
from outrider.workers.types.requests.request import FinishReason, OutputSoFar, SequenceChunk, TokenLogprobs
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.tools import ToolCallDelta, ToolFormat


class TextPiece(NamedTuple):
    """Consecutive text of one kind."""

    text: str
    reasoning: bool = False
    drafted: bool = False  # the tokens are accepted drafts


def joined(pieces: Iterable[TextPiece]) -> tuple[TextPiece, ...]:
    """Merges neighbouring pieces of one kind."""
    return tuple(
        TextPiece("".join(piece.text for piece in run), *kind) for kind, run in groupby(pieces, lambda piece: piece[1:])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDelta:
    """What one output gained. `text` may lag behind `token_ids`: it is sent once it can no longer change."""

    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    reasoning: str = ""  # text before </think>, if the request separates it
    pieces: tuple[TextPiece, ...] = ()  # text and reasoning in order
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of prompt tokens 1 and up, with the first delta of output 0
    drafted: int = 0
    accepted: int = 0
    saved_s: float = 0.0  # by drafts, estimated
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop string that ended it; None at end-of-sequence
    must_cancel: bool = False  # a stop string ended it: the caller must cancel this output in the engine


@dataclass(slots=True, kw_only=True)
class Usage:
    """The usage of a request, or of one of its outputs."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    completion_tokens: int = 0
    rounds: int = 0  # rounds that emitted tokens
    drafted: int = 0  # drafts verified
    accepted: int = 0
    accepted_per_position: list[int] = field(default_factory=list)  # [j]: rounds whose drafts 1..j+1 were all accepted
    drafted_per_position: list[int] = field(default_factory=list)  # [j]: rounds that verified at least j+1 drafts
    rounds_per_depth: list[int] = field(default_factory=list)  # [d]: rounds that verified d drafts
    estimated_time_saved_s: float = 0.0  # by drafts, compared with the modelled time without; negative: lost

    def add_round(self, tokens: int, drafted: int, accepted: int, saved_s: float = 0.0) -> None:
        self.estimated_time_saved_s += saved_s
        self.completion_tokens += tokens
        self.rounds += 1
        self.drafted += drafted
        self.accepted += accepted
        self.rounds_per_depth.extend([0] * (drafted + 1 - len(self.rounds_per_depth)))
        self.rounds_per_depth[drafted] += 1
        _count_up_to(self.drafted_per_position, drafted)
        _count_up_to(self.accepted_per_position, accepted)


def _count_up_to(counts: list[int], positions: int) -> None:
    counts.extend([0] * (positions - len(counts)))
    for position in range(positions):
        counts[position] += 1


class _Text:
    """Turns tokens into text, up to a stop string. Holds back text that may still change."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stops = StopStrings(params.stop_strings, include_in_output=params.include_stop_str_in_output)

    def add(self, token_id: int, may_stop: bool) -> tuple[str, str | None]:
        """The text that is now final, and the stop string that the token completes."""
        return self._stops.add(self._detokenizer.add(token_id), may_stop=may_stop)

    def rest(self) -> str:
        unfinished = self._detokenizer.flush()
        return self._stops.flush() + unfinished


@dataclass(slots=True)
class _Taken:
    """What some tokens added to an output."""

    tokens: int = 0  # number of tokens used
    text: str = ""
    reasoning: str = ""
    pieces: list[TextPiece] = field(default_factory=list)
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    stop_string: str | None = None  # completed by the last token


class OutputAssembler:
    """Assembles one output. The result does not depend on how the engine grouped tokens into rounds."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, index: int = 0) -> None:
        """Without a tokenizer, the text stays empty."""
        self._tokenizer, self._params, self._index = tokenizer, params, index
        self._reasons = params.reasoning and tokenizer is not None  # False once the reasoning has ended
        self._text = None if tokenizer is None else _Text(tokenizer, params)
        self._calls: ToolCallReader | None = None  # set when tool calls begin; no text follows them
        self._tokens = 0
        self.repeats = 0  # tokens that the client has, but the engine will emit again
        self._prompt_given = self._prompt_repeats = 0  # log-probabilities of the prompt, sent and to be repeated
        self._has_prompt = False  # the client has all of those, since it has output tokens
        self.finished = False

    def add(self, chunk: SequenceChunk) -> OutputDelta:
        """What this output gained; an empty delta once it is finished."""
        if self.finished:
            return OutputDelta(index=self._index)
        repeated = min(self.repeats, len(chunk.token_ids))
        taken = self._take(chunk)
        by_string = taken.stop_string is not None
        finish_reason = FinishReason.STOP if by_string else chunk.finish_reason
        self.finished = finish_reason is not None
        has_end = repeated > 0 and repeated == len(
            chunk.token_ids
        )  # the client has the last token and the text it completed
        if self.finished and not by_string and not has_end:
            self._give_rest(taken)
        return OutputDelta(
            index=self._index,
            token_ids=chunk.token_ids[repeated : taken.tokens],
            text=taken.text,
            reasoning=taken.reasoning,
            pieces=tuple(taken.pieces),
            tool_calls=tuple(taken.tool_calls),
            logprobs=chunk.logprobs[repeated : taken.tokens],
            prompt_logprobs=self._new_of_prompt(chunk.prompt_logprobs),
            drafted=chunk.drafted,
            # accepted drafts after a stop string are discarded
            accepted=min(chunk.accepted, taken.tokens - repeated),
            saved_s=chunk.saved_s,
            finish_reason=finish_reason,
            stop_reason=taken.stop_string if by_string else self._stop_id(chunk),
            must_cancel=by_string and chunk.finish_reason is None,
        )

    def resume_after(self, token_ids: Sequence[int]) -> None:
        """Continues after tokens that the client has, with their text.

        The engine will emit the last of them again, so that a finish reason that the client missed is sent.
        """
        self._take(SequenceChunk(request_id="", token_ids=tuple(token_ids[:-1])))
        self.repeats = len(token_ids[-1:])
        self._has_prompt = bool(token_ids)

    def restart(self) -> None:
        """Another engine continues: it may send all of the prompt's log-probabilities again."""
        self._prompt_repeats = self._prompt_given

    def _new_of_prompt(self, entries: tuple[TokenLogprobs, ...]) -> tuple[TokenLogprobs, ...]:
        if self._has_prompt:
            return ()
        repeated = min(self._prompt_repeats, len(entries))
        self._prompt_repeats -= repeated
        self._prompt_given += len(entries) - repeated
        return entries[repeated:]

    def skip(self) -> None:
        """Marks an output that had finished before the request was resumed."""
        self.finished = True

    def _take(self, chunk: SequenceChunk) -> _Taken:
        taken = _Taken()
        for token_id in chunk.token_ids:
            taken.tokens += 1
            self._tokens += 1
            given = taken
            if self.repeats:
                self.repeats, given = self.repeats - 1, _Taken()  # the client has its text
            ends_here = chunk.stop_token_id is not None and taken.tokens == len(chunk.token_ids)
            if (
                self._text is None
                or (ends_here and not self._shows_end(chunk))
                or self._marks_reasoning(token_id, given)
                or self._reads_call(token_id, given)
            ):
                continue
            decided, taken.stop_string = self._text.add(token_id, self._tokens > self._params.min_tokens)
            self._give(given, decided, drafted=taken.tokens <= chunk.accepted)
            if taken.stop_string is not None:
                break
        return taken

    def _marks_reasoning(self, token_id: int, taken: _Taken) -> bool:
        """Whether the token is <think> or </think>. Stop strings do not match across the end of reasoning."""
        self._reasons |= self._tokens == 1 and token_id == self._params.reasoning_begin_id
        if not self._reasons or self._tokenizer is None:
            return False
        begin, end = self._tokenizer.reasoning_ids
        if token_id == end:
            self._give_rest(taken)
            self._reasons, self._text = False, _Text(self._tokenizer, self._params)
        return token_id in (begin, end)

    def _reads_call(self, token_id: int, taken: _Taken) -> bool:
        """Whether the token belongs to tool calls, which come last. Stop strings are not searched there."""
        tokenizer, format = self._tokenizer, self._params.tool_format
        if format is None or self._reasons or tokenizer is None or tokenizer.tool_tokens is None:
            return False
        if self._calls is not None:
            taken.tool_calls += self._calls.add(token_id)
        elif token_id == tokenizer.tool_tokens.calls_begin:
            self._give_rest(taken)
            self._calls = ToolCallReader(tokenizer, tokenizer.tool_tokens, ToolFormat(format))
        return self._calls is not None

    def _give(self, taken: _Taken, decided: str, *, drafted: bool = False) -> None:
        if decided:
            taken.pieces.append(TextPiece(decided, self._reasons, drafted))
        if self._reasons:
            taken.reasoning += decided
        else:
            taken.text += decided

    def _give_rest(self, taken: _Taken) -> None:
        self._give(taken, "" if self._text is None else self._text.rest())
        if self._calls is not None:
            taken.tool_calls += self._calls.rest()

    def _stop_id(self, chunk: SequenceChunk) -> int | None:
        return chunk.stop_token_id if chunk.stop_token_id in (self._params.stop_token_ids or ()) else None

    def _shows_end(self, chunk: SequenceChunk) -> bool:
        """Whether the last token is part of the text: only a stop id, and only with include_stop_str_in_output."""
        return self._params.include_stop_str_in_output and self._stop_id(chunk) is not None


class RequestAssembler:
    """Assembles all outputs of one request, and their total usage."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, prompt_tokens: int) -> None:
        self._outputs = [OutputAssembler(tokenizer, params, index) for index in range(params.n)]
        self._left = params.n  # outputs that have not finished
        self.usage = Usage(prompt_tokens=prompt_tokens)

    def resume_after(self, resumed: Sequence[OutputSoFar]) -> None:
        """Continues after these outputs' tokens. The other outputs have finished."""
        tokens = {output.index: output.token_ids for output in resumed}
        for index, output in enumerate(self._outputs):
            if index in tokens:
                output.resume_after(tokens[index])
                self.usage.completion_tokens += len(tokens[index])
            else:
                output.skip()
                self._left -= 1

    def restart(self) -> None:
        """Another engine continues the request."""
        for output in self._outputs:
            output.restart()

    def unfinished(self, index: int) -> bool:
        return not self._outputs[index].finished

    def repeats(self, index: int) -> int:
        """Tokens of the output that the client has, but the engine will emit again."""
        return self._outputs[index].repeats

    @property
    def finished(self) -> bool:
        return not self._left

    def add(self, chunk: SequenceChunk) -> OutputDelta:
        """What the chunk's output gained. Callers must handle chunks with an error themselves."""
        if chunk.index == 0:
            self.usage.cached_tokens += chunk.cached_tokens
        delta = self._outputs[chunk.index].add(chunk)
        self._left -= delta.finish_reason is not None
        if delta.token_ids:
            self.usage.add_round(len(delta.token_ids), delta.drafted, delta.accepted, delta.saved_s)
        return delta
