"""Makes chat-formatted training text from docstrings and headings. Pure: one file's text in, conversations out."""

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Conversation:
    """One question and its answer."""

    user: str
    assistant: str


_WHAT = (
    "What does `{name}` do?",
    "Explain `{name}`.",
    "What is the purpose of `{name}`?",
    "Describe `{name}` briefly.",
)
_WRITE = (
    "Write a Python function `{name}`: {task}",
    "Implement `{name}` in Python. {task}",
    "Show me `{name}`. {task}",
)
_ABOUT = ("Tell me about {topic}.", "What should I know about {topic}?", "{topic}?", "Explain {topic}.")
_SECTION = re.compile(r"^#+ (?:[\d.]+ )?([^\n]{8,70})\n\n([A-Z][^\n]{120,900}[.:!])\n", re.MULTILINE)


def conversations_from_code(source: str) -> Iterator[Conversation]:
    """Documented functions and classes, as "what does it do" and "write it" questions."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _about_definition(node, lines)


def _about_definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[str]
) -> Iterator[Conversation]:
    docstring = ast.get_docstring(node)
    if docstring is None or not 40 <= len(docstring) <= 1200 or node.name.startswith("test"):
        return
    variety = len(docstring)
    yield Conversation(_WHAT[variety % len(_WHAT)].format(name=node.name), docstring)
    body = "\n".join(lines[node.lineno - 1 : node.end_lineno])
    if isinstance(node, ast.ClassDef) or len(body) > 1500:
        return
    task = " ".join(docstring.split("\n\n")[0].split())
    question = _WRITE[variety % len(_WRITE)].format(name=node.name, task=task)
    yield Conversation(question, f"```python\n{textwrap.dedent(body)}\n```")


def conversations_from_prose(text: str) -> Iterator[Conversation]:
    """A heading as the question, the paragraph below it as the answer."""
    for match in _SECTION.finditer(text):
        topic = match[1].strip().rstrip(".:?")
        question = _ABOUT[len(match[2]) % len(_ABOUT)].format(topic=topic)
        yield Conversation(question[0].upper() + question[1:], match[2])
