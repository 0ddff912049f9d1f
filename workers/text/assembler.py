"""Makes what clients see of what an engine says: text, stop strings, ends, usage. LLM and gateway both use it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from outrider.workers.text.detokenizer import Detokenizer
from outrider.workers.text.stops import StopStrings
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.text.tool_calls import ToolCallReader
from outrider.workers.types.request import FinishReason, OutputSoFar, SequenceChunk, TokenLogprobs
from outrider.workers.types.sampling_params import SamplingParams
from outrider.workers.types.tools import ToolCallDelta, ToolFormat


class TextPiece(NamedTuple):
    """What tokens in a row added to the text, or to the reasoning."""

    text: str
    reasoning: bool = False
    drafted: bool = False  # the tokens are accepted drafts


def joined(pieces: Iterable[TextPiece]) -> tuple[TextPiece, ...]:
    """Neighbours of one kind as one."""
    return tuple(
        TextPiece("".join(piece.text for piece in run), *kind) for kind, run in groupby(pieces, lambda piece: piece[1:])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDelta:
    """What one output gained. `text` may lag behind `token_ids`: it is given once it can no longer change."""

    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    reasoning: str = ""  # what is said before </think>, where that is to be given apart
    pieces: tuple[TextPiece, ...] = ()  # text and reasoning again
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of prompt tokens 1 and up, with the first delta of output 0
    drafted: int = 0
    accepted: int = 0
    saved_s: float = 0.0  # by drafts, as modelled
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop string that ended it; None at end-of-sequence
    must_cancel: bool = False  # a stop string ended it, and the engine does not know: cancel this output there


@dataclass(slots=True, kw_only=True)
class Usage:
    """What a request, or one of its outputs, cost."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    completion_tokens: int = 0
    rounds: int = 0  # rounds that gave tokens
    drafted: int = 0  # drafts verified
    accepted: int = 0
    accepted_per_position: list[int] = field(default_factory=list)  # [j]: rounds whose drafts 1..j+1 were all accepted
    drafted_per_position: list[int] = field(default_factory=list)  # [j]: rounds that verified at least j+1 drafts
    rounds_per_depth: list[int] = field(default_factory=list)  # [d]: rounds that verified d drafts
    estimated_time_saved_s: float = 0.0  # by drafts, beside the modelled time without; below 0: lost

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
    """Tokens to text as it can be given out, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stops = StopStrings(params.stop_strings, include_in_output=params.include_stop_str_in_output)

    def add(self, token_id: int, may_stop: bool) -> tuple[str, str | None]:
        """What the token decides, and the stop string that it completes."""
        return self._stops.add(self._detokenizer.add(token_id), may_stop=may_stop)

    def rest(self) -> str:
        unfinished = self._detokenizer.flush()
        return self._stops.flush() + unfinished


@dataclass(slots=True)
class _Taken:
    """What some tokens decide."""

    tokens: int = 0  # used
    text: str = ""
    reasoning: str = ""
    pieces: list[TextPiece] = field(default_factory=list)
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    stop_string: str | None = None  # which the last of them completed


class OutputAssembler:
    """One output. What it gives does not depend on how the engine grouped tokens into rounds."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, index: int = 0) -> None:
        """Without a tokenizer the text stays empty."""
        self._tokenizer, self._params, self._index = tokenizer, params, index
        self._reasons = params.reasoning and tokenizer is not None  # and has not come to an end
        self._text = None if tokenizer is None else _Text(tokenizer, params)
        self._calls: ToolCallReader | None = None  # once calls have begun: then no text comes any more
        self._tokens = 0
        self.repeats = 0  # tokens that the engine will say, and the client has
        self._prompt_given = self._prompt_repeats = 0  # log-probabilities of the prompt
        self._has_prompt = False  # the client has them all, as they come before its tokens
        self.finished = False

    def add(self, chunk: SequenceChunk) -> OutputDelta:
        """What this output gained; nothing once it is finished."""
        if self.finished:
            return OutputDelta(index=self._index)
        repeated = min(self.repeats, len(chunk.token_ids))
        taken = self._take(chunk)
        by_string = taken.stop_string is not None
        finish_reason = FinishReason.STOP if by_string else chunk.finish_reason
        self.finished = finish_reason is not None
        heard_end = repeated > 0 and repeated == len(
            chunk.token_ids
        )  # the client has the last token, and what it ended
        if self.finished and not by_string and not heard_end:
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
            # of a round that a stop string cuts, drafts may be discarded
            accepted=min(chunk.accepted, taken.tokens - repeated),
            saved_s=chunk.saved_s,
            finish_reason=finish_reason,
            stop_reason=taken.stop_string if by_string else self._stop_id(chunk),
            must_cancel=by_string and chunk.finish_reason is None,
        )

    def take_up(self, token_ids: Sequence[int]) -> None:
        """The client has these, and their text: what follows is given behind it.

        The engine is to say the last of them again, so that an end is heard that the client has missed.
        """
        self._take(SequenceChunk(request_id="", token_ids=tuple(token_ids[:-1])))
        self.repeats = len(token_ids[-1:])
        self._has_prompt = bool(token_ids)

    def begin_again(self) -> None:
        """Another engine goes on: of the prompt's log-probabilities it may say all again."""
        self._prompt_repeats = self._prompt_given

    def _new_of_prompt(self, entries: tuple[TokenLogprobs, ...]) -> tuple[TokenLogprobs, ...]:
        if self._has_prompt:
            return ()
        repeated = min(self._prompt_repeats, len(entries))
        self._prompt_repeats -= repeated
        self._prompt_given += len(entries) - repeated
        return entries[repeated:]

    def skip(self) -> None:
        """This output finished before."""
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
        """Whether the token only says where reasoning begins or ends. A stop string does not reach across the end."""
        self._reasons |= self._tokens == 1 and token_id == self._params.reasoning_begin_id
        if not self._reasons or self._tokenizer is None:
            return False
        begin, end = self._tokenizer.reasoning_ids
        if token_id == end:
            self._give_rest(taken)
            self._reasons, self._text = False, _Text(self._tokenizer, self._params)
        return token_id in (begin, end)

    def _reads_call(self, token_id: int, taken: _Taken) -> bool:
        """Whether the token belongs to calls of functions, which come last. No stop string is looked for there."""
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
        """End-of-sequence is never text; a stop id is when the request includes what stopped it."""
        return self._params.include_stop_str_in_output and self._stop_id(chunk) is not None


class RequestAssembler:
    """All outputs of one request, and what they cost together."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, prompt_tokens: int) -> None:
        self._outputs = [OutputAssembler(tokenizer, params, index) for index in range(params.n)]
        self._left = params.n  # outputs that have not finished
        self.usage = Usage(prompt_tokens=prompt_tokens)

    def take_up(self, resumed: Sequence[OutputSoFar]) -> None:
        """Goes on behind these outputs' tokens; the others have finished."""
        tokens = {output.index: output.token_ids for output in resumed}
        for index, output in enumerate(self._outputs):
            if index in tokens:
                output.take_up(tokens[index])
                self.usage.completion_tokens += len(tokens[index])
            else:
                output.skip()
                self._left -= 1

    def begin_again(self) -> None:
        """Another engine goes on."""
        for output in self._outputs:
            output.begin_again()

    def unfinished(self, index: int) -> bool:
        return not self._outputs[index].finished

    def repeats(self, index: int) -> int:
        """Tokens of the output that its client has, and the engine is still to say again."""
        return self._outputs[index].repeats

    @property
    def finished(self) -> bool:
        return not self._left

    def add(self, chunk: SequenceChunk) -> OutputDelta:
        """What the chunk's output gained. Chunks that carry an error are the caller's to handle."""
        if chunk.index == 0:
            self.usage.cached_tokens += chunk.cached_tokens
        delta = self._outputs[chunk.index].add(chunk)
        self._left -= delta.finish_reason is not None
        if delta.token_ids:
            self.usage.add_round(len(delta.token_ids), delta.drafted, delta.accepted, delta.saved_s)
        return delta
