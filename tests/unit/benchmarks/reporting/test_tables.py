"""Tables as markdown and HTML, and figures as words."""

import pytest

from benchmarks.reporting.tables import Table, figure, ratio, share


def test_a_markdown_table_aligns_figures_to_the_right() -> None:
    table = Table(["text", "batch", "tokens/s"], [["code", "1", "700"]], labels=2)

    assert table.markdown() == "| text | batch | tokens/s |\n| --- | --- | ---: |\n| code | 1 | 700 |"


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert Table(["a"], [["x|y"]]).markdown().endswith("| x\\|y |")


def test_html_is_escaped() -> None:
    assert "<td>&lt;b&gt;</td>" in Table(["a"], [["<b>"]]).html()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"), (0, "0"), (0.12345, "0.12"), (1.2345, "1.23"), (12.345, "12.3"), (123.45, "123"),
        (1234.5, "1,234"), (56789.0, "56,789"), (-49.25, "-49.2"),
    ],
)  # fmt: skip
def test_a_figure_has_about_three_digits(value: float | None, words: str) -> None:
    assert figure(value) == words


def test_ratios_and_shares() -> None:
    assert (ratio(1.0), ratio(None), share(0.714), share(None)) == ("1.00", "–", "71%", "–")
