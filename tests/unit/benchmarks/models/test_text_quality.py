"""How the demo model's text is judged beside the text that it was to go on with."""

from pathlib import Path

import pytest
from small_tokenizer import write_tokenizer
from tokenizers import Tokenizer

from benchmarks.models import text_quality

ENDS = "def first(left: int, right: int) -> int:\n    return"
GOES_ON = "def second(left: int) -> int:\n"
FILE = f"{ENDS} left + right\n\n\n{GOES_ON}    '''" + "Много слов. " * 90 + "'''\n    return left\n"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(write_tokenizer(tmp_path) / "tokenizer.json"))


def test_the_files_own_text_fails_where_no_statement_ends_in_time(tokenizer: Tokenizer) -> None:
    documents = [{"kind": "prose", "text": ENDS}, {"kind": "code", "text": FILE}]

    assert text_quality.own_code_parses(documents, tokenizer, [ENDS, GOES_ON]) == [True, False]


def test_completions_are_judged_again_where_the_files_own_text_passes(tokenizer: Tokenizer) -> None:
    document = {"package": "p", "path": "a.py", "kind": "code", "permissive": True}
    short = "def f(left):\n    return left + 1\n\n\n" * 40
    long = "".join(f'def g{i}(x):\n    """' + "Много слов. " * 30 + '"""\n\n\n' for i in range(9))
    documents = [document | {"text": short}, document | {"path": "b.py", "text": long}]

    prompts = text_quality.prompts_by_use(documents, tokenizer, 2)

    assert len(prompts["code"]) == 2
    assert prompts[text_quality.PARSES_TOO]
    assert all(prompt in short for prompt in prompts[text_quality.PARSES_TOO])
    assert not all(prompt in short for prompt in prompts["code"])
