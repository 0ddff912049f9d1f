"""The pages of the documentation and the README: short, for a named reader, and right about the files they name."""

import re
from pathlib import Path

import pytest
from docs.commands import DOCS, pages

ROOT = DOCS.parent
TYPES = ("Tutorial", "How-to", "Explanation", "Reference")
CODE = re.compile(r"`((?:cluster|workers|kernels|tests|benchmarks|proto|helm)/[\w./-]+?\.(?:py|h|cpp|proto|json))`")
READER = [page for page in pages() if page.name != "index.md"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages(), ids=name)
def test_a_page_is_read_in_one_sitting(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= 123


@pytest.mark.parametrize("page", READER, ids=name)
def test_a_page_says_first_what_it_is_and_for_whom(page: Path) -> None:
    title, empty, first, *_ = page.read_text().splitlines()

    assert title.startswith("# ")
    assert empty == ""
    assert first.startswith(tuple(f"*{one}, for " for one in TYPES))


@pytest.mark.parametrize("page", [*pages(), ROOT / "README.md", ROOT / "AGENTS.md"], ids=name)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    named = CODE.findall(page.read_text())

    assert [path for path in named if not (ROOT / path).exists()] == []


def test_a_request_passes_ten_files() -> None:
    page = (DOCS / "explanation" / "how-a-request-is-served.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \|", page, re.M)

    assert dict(rows).keys() == {str(number) for number in range(1, 11)}
    assert len({path for _, path in rows}) == 10


def test_the_readme_fits_a_screen_and_a_half() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.strip("|").split("|")]

    assert len(lines) <= 110
    assert len(cells) > 12
    assert max(map(len, cells)) <= 80
