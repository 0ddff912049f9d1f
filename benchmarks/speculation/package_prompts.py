"""Prompts cut from the source files of numpy and torch as they are installed.

outrider depends on both packages, so they are on every machine that runs it, and no network is needed. Neither is among
the sources of scout's training corpus (workers/training/sources.py), from which its training text, the prompts of its
distillation and the held-out prompts of every other benchmark were taken. The text depends on the installed versions.
"""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from outrider.workers.training.cleaning import is_readable_code, is_running_prose, rst_to_text, tidy

PACKAGES = ("numpy", "torch")
SHORTEST, LONGEST = 40, 300  # tokens
_SHORTEST_DOCSTRING = 400  # characters: shorter ones are labels more than prose
_SKIPPED = re.compile(r"(^|/)_?tests?(/|_)|testing|vendor|conftest|/_extern")
_STARTS = {
    "code": re.compile(r"^(?:def |class |@|    def |import |from )", re.MULTILINE),
    "prose": re.compile(r"(?:^|(?<=\n\n))[A-Z][^\n]{60,}"),
}


def prompts(kind: str, count: int, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Token ids of `count` prompts of "code" or "prose", one from a file, in the order of a hash of the file's name."""
    found: list[list[int]] = []
    for name, path in _files():
        text = _text(kind, path.read_text(encoding="utf-8", errors="replace"))
        prompt = cut(kind, name, text, encode) if text else None
        if prompt is not None and prompt not in found:
            found.append(prompt)
            if len(found) == count:
                return found
    raise RuntimeError(f"{', '.join(PACKAGES)} hold only {len(found)} {kind} prompts, {count} are needed")


def cut(kind: str, name: str, text: str, encode: Callable[[str], list[int]]) -> list[int] | None:
    """SHORTEST to LONGEST tokens from the start of a definition or a paragraph; None if the text is too short.

    The hash of the file's name chooses the start and the length.
    """
    number = name_hash(name)
    starts = [match.start() for match in _STARTS[kind].finditer(text)]
    length = SHORTEST + number // 1000 % (LONGEST - SHORTEST + 1)
    if not starts:
        return None
    start = starts[number % len(starts)]
    prompt = encode(text[start : start + 12 * LONGEST])[:length]
    return prompt if len(prompt) == length else None


def versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def name_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _files() -> list[tuple[str, Path]]:
    """Name and path of every source file that is not a test, in the order of the hash of the name."""
    files = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RuntimeError(f"{package} is not installed: prompts are cut from its files")
        root = Path(spec.origin).parent
        files += [(f"{package}/{path.relative_to(root).as_posix()}", path) for path in root.rglob("*.py")]
    return sorted((one for one in files if not _SKIPPED.search(one[0])), key=lambda one: name_hash(one[0]))


def _text(kind: str, source: str) -> str:
    """The file's code, or its docstrings as plain text; "" if they are not fit to be continued."""
    if not is_readable_code(source):
        return ""
    if kind == "code":
        return tidy(source)
    prose = "\n\n".join(rst_to_text(docstring).strip() for docstring in _docstrings(source))
    return prose if is_running_prose(prose) else ""


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            if len(docstring) >= _SHORTEST_DOCSTRING:
                yield docstring
