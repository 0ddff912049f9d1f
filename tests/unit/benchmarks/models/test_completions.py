"""What counts as code that parses, and as a loop."""

import pytest

from benchmarks.models.completions import loops, parses, what_follows


def test_a_span_three_times_in_the_last_tokens_is_a_loop() -> None:
    span = list(range(8))

    assert loops([99, *span, *span, *span])
    assert loops([7] * 10)
    assert not loops([*span, *span])
    assert not loops([*span, *span, *span, *range(100, 160)]), "it has left the loop"


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("def f(x):\n    return x", " + 1\n\ndef g("),
        ("def f(x):\n    y = [", "1,\n         2]\n    return y\n\n    z = {3"),
        ("    def method(self):\n", "        return 1\n\n    def other(self):\n        self"),
        ("def f():\n", '    """Says\n\n    much."""\n    x = 1\n    if x:\n'),
    ],
)
def test_code_parses_up_to_its_last_whole_statement(prompt: str, completion: str) -> None:
    assert parses(prompt, completion)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("def f(x):\n    return x", " + )\n\ndef g("),
        ("def f(x):\n", "  return x\n y = 1\nz"),
        ("x = 1\ny = (", "2, 3"),
        ("x = 1\n", "y = 2"),
    ],
    ids=["wrong", "indented wrongly", "nothing of it is whole", "its only line may go on"],
)
def test_what_does_not_parse_or_leaves_nothing_of_the_completion_does_not_count(prompt: str, completion: str) -> None:
    assert not parses(prompt, completion)


def test_what_follows_a_prompt_is_the_rest_of_its_document() -> None:
    documents = ["x = 1\ny = 2\n", "def f(a):\n    return a\n\n\ndef f(a):\n    pass\n"]

    assert what_follows("def f(a):", documents) == "\n    return a\n\n\ndef f(a):\n    pass\n"
    with pytest.raises(LookupError, match="z = 3"):
        what_follows("z = 3", documents)
