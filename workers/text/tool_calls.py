"""Parses tool calls out of tokens. Calls are enclosed in special tokens, so they cannot be confused with text.

The result does not depend on how tokens were grouped into rounds.
"""

from collections.abc import Iterable
from dataclasses import replace

from outrider.workers.text.detokenizer import Detokenizer
from outrider.workers.text.stops import StopStrings
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.requests.tools import ToolCallDelta, ToolFormat, ToolTokens

BEFORE_ARGUMENTS, AFTER_ARGUMENTS = "\n```json\n", "\n```"


class _Call:
    """One call while it is parsed."""

    def __init__(self, tokenizer: Tokenizer, format: ToolFormat) -> None:
        self._tokenizer, self._format = tokenizer, format
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings((AFTER_ARGUMENTS,))
        self._head = ""  # text before the name is complete
        self._named = self._closed = False
        self._past_sep = False

    def add(self, token_id: int) -> tuple[str, str]:
        """The name, when it becomes complete, and new text of the arguments."""
        text = self._detokenizer.add(token_id)
        if self._named:
            return "", self._arguments(text)
        self._head += text
        if self._format is ToolFormat.V31 or not self._past_sep or BEFORE_ARGUMENTS not in self._head:
            return "", ""
        name, _, rest = self._head.partition(BEFORE_ARGUMENTS)
        self._named = True
        return name, self._arguments(rest)

    def separate(self) -> str:
        """Handles the separator. Returns the name if it comes before the separator (V3.1)."""
        name, self._head, self._past_sep = self._head + self._detokenizer.flush(), "", True
        self._detokenizer = Detokenizer(self._tokenizer)
        self._named = self._format is ToolFormat.V31
        return name if self._named else ""

    def _arguments(self, text: str) -> str:
        if self._format is ToolFormat.V31 or self._closed:
            return "" if self._closed else text
        decided, stop = self._stops.add(text)
        self._closed = stop is not None
        return decided

    def rest(self) -> str:
        """The arguments' text still held back, if the call was cut off."""
        return "" if self._closed or not self._named else self._stops.flush() + self._detokenizer.flush()


class ToolCallReader:
    """Parses one output's calls, starting after the token that begins them."""

    def __init__(self, tokenizer: Tokenizer, tokens: ToolTokens, format: ToolFormat) -> None:
        self._tokenizer, self._tokens, self._format = tokenizer, tokens, format
        self._call: _Call | None = None
        self._index = -1

    def add(self, token_id: int) -> list[ToolCallDelta]:
        tokens = self._tokens
        if token_id == tokens.call_begin:
            self._call = _Call(self._tokenizer, self._format)
            return []
        if self._call is None:
            return []
        if token_id == tokens.call_end:
            return self.rest()
        if token_id == tokens.sep:
            return self._delta(self._call.separate(), "")
        return self._delta(*self._call.add(token_id))

    def rest(self) -> list[ToolCallDelta]:
        """The last delta of a call, when it or the output has ended."""
        left, self._call = ("" if self._call is None else self._call.rest()), None
        return self._delta("", left)

    def _delta(self, name: str, arguments: str) -> list[ToolCallDelta]:
        self._index += bool(name)
        return [ToolCallDelta(index=self._index, name=name, arguments=arguments)] if name or arguments else []


def merged(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """Merges deltas to one per call."""
    found: dict[int, ToolCallDelta] = {}
    for delta in deltas:
        known = found.get(delta.index)
        found[delta.index] = delta if known is None else replace(known, arguments=known.arguments + delta.arguments)
    return tuple(found.values())
