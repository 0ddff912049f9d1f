"""Tables as markdown and as HTML, and how a figure is written."""

from dataclasses import dataclass
from html import escape

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a header; the first `labels` columns are words, the others figures."""

    header: list[str]
    rows: list[list[str]]
    labels: int = 1

    def markdown(self) -> str:
        rule = ["---" if column < self.labels else "---:" for column in range(len(self.header))]
        return "\n".join(_markdown_row(row) for row in (self.header, rule, *self.rows))

    def html(self) -> str:
        head = "".join(self._cell("th", column, text) for column, text in enumerate(self.header))
        body = "".join(
            f"<tr>{''.join(self._cell('td', column, text) for column, text in enumerate(row))}</tr>"
            for row in self.rows
        )
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def _cell(self, tag: str, column: int, text: str) -> str:
        return f"<{tag}{'' if column < self.labels else ' class=figure'}>{escape(text)}</{tag}>"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def figure(value: float | None, digits: int = 3) -> str:
    """To `digits` significant digits, without an exponent; whole numbers stay whole. None is a dash."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    places = digits - len(str(int(abs(value)))) if abs(value) >= 1 else digits - 1
    return f"{value:,.{max(places, 0)}f}"


def ratio(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0%}"
