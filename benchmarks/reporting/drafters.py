"""The section on who drafts: each drafter alone, and the chooser among them, by kind of text. Pure."""

from typing import Any

from benchmarks.reporting.section import Record, Section
from benchmarks.reporting.svg import bar_plot
from benchmarks.reporting.tables import Table, figure, ratio


def drafters(name: str, record: Record) -> list[Section]:
    """Of speculation/drafters.py."""
    cases = record["cases"]
    arms = list(cases[0]["arms"])
    speeds = {arm: [case["arms"][arm]["tokens_per_second"] for case in cases] for arm in arms}
    plot = bar_plot("Tokens a second by who drafts", [_text(case) for case in cases], speeds, y_name="tokens/s")
    header = ["text", "batch", *(f"{arm}, tokens/s (a round)" for arm in arms), "auto / best", "lookup / mtp"]
    table = Table(header, [_row(case, arms) for case in cases], labels=2)
    return [Section(title=f"Who drafts ({name})", record=record, tables=[table], plots=[plot])]


def _text(case: dict[str, Any]) -> str:
    return f"{case['kind']}, T={case['temperature']:g}"


def _row(case: dict[str, Any], arms: list[str]) -> list[str]:
    found = (case["arms"][arm] for arm in arms)
    speeds = [f"{figure(one['tokens_per_second'])} ({one['tokens_per_round']:.1f})" for one in found]
    return [_text(case), str(case["batch"]), *speeds, ratio(case["auto_over_best"]), ratio(case.get("lookup_over_mtp"))]
