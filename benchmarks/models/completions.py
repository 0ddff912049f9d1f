"""What is asked of a small model's text: code that parses, and text that does not go round in circles. Pure."""

import ast
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence

SPAN, TIMES, LAST = 8, 3, 64  # tokens of a span, how often it comes in a loop, and in how many last tokens
# What the parser says of text that only wants more.
_BROKEN_OFF = (
    "was never closed", "unterminated", "unexpected EOF", "expected an indented block", "expected 'except'",
    "expected ':'",
)  # fmt: skip


def loops(token_ids: Sequence[int]) -> bool:
    """Whether a span comes again and again at the text's end."""
    last = token_ids[-LAST:]
    spans = Counter(tuple(last[i : i + SPAN]) for i in range(len(last) - SPAN + 1))
    return max(spans.values(), default=0) >= TIMES


def whole_lines(code: str) -> int | None:
    """How many lines of `code` there are up to its last whole statement; None if they do not parse.

    The last line never counts. More are taken from the end as long as what is left breaks off in the middle of
    something. Code may begin inside a block.
    """
    head = ["if True:"] if code[:1].isspace() else []
    lines = code.splitlines()[:-1]
    while lines:
        try:
            ast.parse("\n".join([*head, *lines]) + "\n")
        except SyntaxError as error:
            if not any(sign in str(error.msg) for sign in _BROKEN_OFF):
                return None
            lines.pop()
        else:
            return len(lines)
    return None


def parses(prompt: str, completion: str) -> bool:
    """Whether code parses with its completion, of which at least the end of a statement must be left."""
    lines = whole_lines(prompt + completion)
    return lines is not None and lines > prompt.count("\n")


def what_follows(prompt: str, documents: Iterable[str]) -> str:
    """The rest of the first document that holds `prompt`. LookupError if none does."""
    for text in documents:
        _, found, rest = text.partition(prompt)
        if found:
            return rest
    raise LookupError(f"no document holds {reprlib.repr(prompt)}")
