"""Plots as inline SVG: lines, bars beside one another, bars in pieces. Colours are the page's variables --s0, --s1, ...

Every mark carries its value as a title, which a pointer over it shows. A None is a gap.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from benchmarks.reporting.tables import figure

WIDTH, HEIGHT = 640, 310
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 46, 44  # room around the plot
COLOURS = 8
_BAR_HEIGHT, _BAR_GAP, _LABEL_WIDTH, _STACK_TOP = 22, 12, 170, 32
_LEGEND_HEIGHT, _LETTER = 20, 6.6  # a letter's width, about

Series = Mapping[str, Sequence[float | None]]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From [low, high] to [start, end], in proportion."""
    return lambda value: start + (value - low) * (end - start) / (high - low)


def ticks(top: float, most: int = 6) -> list[float]:
    """Round numbers from 0 to the first at or above `top`, `most` of them or fewer."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / (most - 1)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(top / step - 1e-9) + 1)]


def line_plot(title: str, x: Sequence[str], series: Series, *, x_name: str, y_name: str) -> str:
    """A line for each series over the equally spaced words of `x`."""
    legend, below = _legend(series)
    levels, across, up = _axes(x, series, below)
    marks = [legend, _frame(levels, up, y_name, below), _x_words(x, across, x_name, below)]
    for number, (name, values) in enumerate(series.items()):
        points = [(across(i), up(value), value) for i, value in enumerate(values) if value is not None]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        marks.append(f'<polyline class="line s{number % COLOURS}" points="{path}"/>')
        marks += [
            f'<circle class="mark s{number % COLOURS}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
            f"<title>{escape(name)}: {figure(value)}</title></circle>"
            for px, py, value in points
        ]
    return _svg(title, marks, HEIGHT + below)


def bar_plot(title: str, groups: Sequence[str], series: Series, *, y_name: str) -> str:
    """For each group a bar of each series, with its value above it where there is room."""
    legend, below = _legend(series)
    levels, across, up = _axes(groups, series, below)
    marks = [legend, _frame(levels, up, y_name, below), _x_words(groups, across, "", below)]
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(0.8 * room / len(series), 48.0)
    for number, (name, values) in enumerate(series.items()):
        for group, value in enumerate(values):
            if value is None:
                continue
            left = across(group) + (number - len(series) / 2) * width
            marks.append(
                f'<rect class="mark s{number % COLOURS}" x="{left:.1f}" y="{up(value):.1f}" width="{width - 1:.1f}" '
                f'height="{max(up(0) - up(value), 0):.1f}"><title>{escape(name)}, {escape(groups[group])}: '
                f"{figure(value)}</title></rect>"
            )
            if width > _LETTER * len(figure(value)):
                marks.append(_text(left + width / 2, up(value) - 4, figure(value), "small", "middle"))
    return _svg(title, marks, HEIGHT + below)


def stacked_plot(title: str, rows: Sequence[str], parts: Series, *, unit: str) -> str:
    """For each row one bar from left to right, in pieces; its sum stands behind it. What is below 0 counts as 0."""
    legend, below = _legend(parts)
    sums = [sum(max(values[row] or 0, 0) for values in parts.values()) for row in range(len(rows))]
    across = scale(0, max(sums) or 1, _LABEL_WIDTH, WIDTH - 80)
    marks = [legend]
    for row, name in enumerate(rows):
        top, left = _STACK_TOP + below + row * (_BAR_HEIGHT + _BAR_GAP), float(_LABEL_WIDTH)
        marks.append(_text(_LABEL_WIDTH - 8, top + _BAR_HEIGHT - 7, name, "", "end"))
        for number, (part, values) in enumerate(parts.items()):
            value = max(values[row] or 0, 0)
            width = across(value) - _LABEL_WIDTH
            marks.append(
                f'<rect class="mark s{number % COLOURS}" x="{left:.1f}" y="{top}" width="{width:.1f}" '
                f'height="{_BAR_HEIGHT}"><title>{escape(part)}: {figure(value)} {escape(unit)}</title></rect>'
            )
            left += width
        marks.append(_text(left + 6, top + _BAR_HEIGHT - 7, f"{figure(sums[row])} {unit}", "", "start"))
    return _svg(title, marks, _STACK_TOP + below + len(rows) * (_BAR_HEIGHT + _BAR_GAP))


def _axes(
    words: Sequence[str], series: Series, below: float
) -> tuple[list[float], Callable[[float], float], Callable[[float], float]]:
    """The levels of the value axis, and the places of a word by its number and of a value."""
    levels = ticks(max((value for values in series.values() for value in values if value is not None), default=0))
    room = (WIDTH - LEFT - RIGHT) / len(words)
    up = scale(0, levels[-1], HEIGHT + below - BOTTOM, TOP + below)
    return levels, scale(0, 1, LEFT + room / 2, LEFT + 1.5 * room), up


def _frame(levels: Sequence[float], up: Callable[[float], float], y_name: str, below: float) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(level):.1f}" y2="{up(level):.1f}"/>'
        + _text(LEFT - 8, up(level) + 4, f"{level:,g}", "small", "end")
        for level in levels
    ]
    return "".join(lines) + _text(8, TOP + below - 12, y_name, "small", "start")


def _x_words(words: Sequence[str], across: Callable[[float], float], x_name: str, below: float) -> str:
    line = HEIGHT + below - BOTTOM
    placed = "".join(_text(across(i), line + 17, word, "small", "middle") for i, word in enumerate(words))
    return placed + _text((LEFT + WIDTH - RIGHT) / 2, line + 35, x_name, "small", "middle")


def _legend(series: Series) -> tuple[str, float]:
    """The names with their colours, in as many lines as they need, and the height they take."""
    marks, left, line = [], float(LEFT), 0
    for number, name in enumerate(series):
        width = 26 + _LETTER * len(name)
        if left + width > WIDTH and left > LEFT:
            left, line = float(LEFT), line + 1
        top = 20 + line * _LEGEND_HEIGHT
        marks.append(f'<rect class="mark s{number % COLOURS}" x="{left:.1f}" y="{top + 3}" width="10" height="10"/>')
        marks.append(_text(left + 15, top + 12, name, "small", "start"))
        left += width
    return "".join(marks), (line + 1) * _LEGEND_HEIGHT


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, marks: Sequence[str], height: float) -> str:
    inside = _text(8, 13, title, "title", "start") + "".join(marks)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{inside}</svg>'
