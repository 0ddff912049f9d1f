"""Plots: where a value lands, which levels an axis has, and what is drawn of gaps and words."""

import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.reporting.svg import bar_plot, line_plot, scale, stacked_plot, ticks


def test_a_scale_maps_its_ends_to_its_ends_and_may_turn_around() -> None:
    up = scale(10, 20, 200, 100)

    assert (up(10), up(15), up(20)) == (200, 150, 100)


@pytest.mark.parametrize("top", [0.013, 0.97, 1, 3, 7.2, 99, 101, 1345, 25_000])
def test_ticks_are_few_and_round_and_reach_the_top(top: float) -> None:
    levels = ticks(top)

    assert levels[0] == 0
    assert levels[-2] < top <= levels[-1] * (1 + 1e-9)
    assert 2 <= len(levels) <= 6
    assert float(f"{levels[1]:.2g}") == pytest.approx(levels[1])


def test_an_axis_of_nothing_still_has_levels() -> None:
    assert ticks(0) == [0.0, 1.0]


def marks(svg: str, tag: str) -> list[ElementTree.Element]:
    return [mark for mark in ElementTree.fromstring(svg).iter(tag) if "mark" in mark.get("class", "")]


def test_a_gap_in_a_line_has_no_mark() -> None:
    svg = line_plot("speed", ["1", "2", "4"], {"off": [1.0, None, 3.0]}, x_name="batch", y_name="tokens/s")

    assert [mark[0].text for mark in marks(svg, "circle")] == ["off: 1.00", "off: 3.00"]


def test_bars_are_as_high_as_their_values() -> None:
    svg = bar_plot("race", ["x1"], {"a": [10.0], "b": [5.0], "c": [None]}, y_name="tokens/s")

    high, half = (float(bar.get("height", "")) for bar in marks(svg, "rect") if len(bar))
    assert half == pytest.approx(high / 2, abs=0.1)


def test_pieces_of_a_bar_follow_one_another() -> None:
    svg = stacked_plot("round", ["1 row"], {"a": [30.0], "b": [10.0]}, unit="us")

    first, second = (bar for bar in marks(svg, "rect") if len(bar))
    end = float(first.get("x", "")) + float(first.get("width", ""))
    assert float(second.get("x", "")) == pytest.approx(end, abs=0.11)
    assert float(first.get("width", "")) == pytest.approx(3 * float(second.get("width", "")), rel=0.01)


def test_words_are_escaped() -> None:
    svg = bar_plot('a < b & "c"', ["<x>"], {"<s>": [1.0]}, y_name="<y>")

    assert ElementTree.fromstring(svg).get("aria-label") == 'a < b & "c"'
