"""The commands that the documentation tells its reader to type, and the files it tells them to write."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"(?:<!--(?P<note>(?:(?!-->).)*)-->\n)?^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
_OUTRIDER = re.compile(r"(?:\$ )?(?:\.venv/bin/)?(outrider .*)")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Command:
    """One line after a `$`."""

    page: str
    text: str
    why_not: str = ""  # it is not run by a test

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page, in order. A comment before its block, `not run: REASON`, keeps it from the tests."""
    for block in _BLOCK.finditer(page.read_text()):
        if block["info"].split()[:1] != ["console"]:
            continue
        note = (block["note"] or "").strip()
        why_not = note.removeprefix("not run:").strip() if note.startswith("not run:") else ""
        for line in block["text"].splitlines():
            assert line.startswith("$ "), f"{page.name}: a console block holds commands alone, got {line!r}"
            yield Command(page.name, line.removeprefix("$ "), why_not)


def shown() -> Iterator[Command]:
    """Every `outrider` command in any block of the repository's pages, of which only those of `commands` are run."""
    root = DOCS.parent
    for page in (*pages(), root / "README.md", root / "helm" / "outrider" / "README.md"):
        for block in _BLOCK.finditer(page.read_text()):
            lines = block["text"].replace("\\\n", " ").splitlines()
            for found in filter(None, map(_OUTRIDER.match, lines)):
                yield Command(page.name, found[1])


def written_files(page: Path) -> dict[str, str]:
    """The files that a page shows by name, in a block with a title."""
    blocks = ((_TITLE.search(block["info"]), block["text"]) for block in _BLOCK.finditer(page.read_text()))
    return {title[1]: text for title, text in blocks if title is not None}
