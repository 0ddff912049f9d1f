"""The section on depths of drafting: auto against static depths, acceptance by position, a changing load. Pure."""

from typing import Any

from benchmarks.reporting.section import Record, Section
from benchmarks.reporting.svg import bar_plot, line_plot
from benchmarks.reporting.tables import ABSENT, Table, figure, ratio


def speculation(name: str, record: Record) -> list[Section]:
    """Of speculation/auto_against_depths.py: whatever parts were measured."""
    sections = []
    if record.get("cells"):
        sections += [_cells(name, record, record["cells"]), _acceptance(name, record, record["cells"])]
    if record.get("replay"):
        sections.append(_replay(name, record, record["replay"]))
    if record.get("decision_us"):
        sections.append(_decisions(name, record, record["decision_us"]))
    return sections


def simulated(name: str, record: Record) -> list[Section]:
    """Of speculation/simulated_depths.py."""
    header = ["text", "batch", "best static", "best / off", "auto / best", "worst", "auto / off", "worst"]
    figures = ("best_over_off", "auto_over_best", "worst_over_best", "auto_over_off", "worst_over_off")
    rows = [
        [cell["kind"], str(cell["batch"]), str(cell["best_static"]), *(ratio(cell[figure]) for figure in figures)]
        for cell in record["cells"]
    ]
    return [Section(title=f"Depths in simulation ({name})", record=record, tables=[Table(header, rows, labels=2)])]


def _text(cell: dict[str, Any]) -> str:
    return f"{cell['kind']}, T={cell['temperature']:g}"


def _cells(name: str, record: Record, cells: list[dict[str, Any]]) -> Section:
    arms = list(cells[0]["arms"])
    header = ["text", "batch", *(f"{arm}, tokens/s" for arm in arms), "best static", "auto / best", "auto / off"]
    rows = [
        [
            _text(cell), str(cell["batch"]), *(figure(cell["arms"][arm]["tokens_per_second"]) for arm in arms),
            cell["best_static"] or ABSENT, ratio(cell["auto_over_best"]), ratio(cell["auto_over_off"]),
        ]
        for cell in cells
    ]  # fmt: skip
    places = [f"{cell['kind']} x{cell['batch']}" for cell in cells]
    compared = {"auto / best static": [cell["auto_over_best"] for cell in cells]}
    gained = {"auto / off": [cell["auto_over_off"] for cell in cells]}
    plots = [
        bar_plot("Auto over the best static depth", places, compared, y_name="ratio"),
        bar_plot("Auto over off", places, gained, y_name="ratio"),
    ]
    title = f"Depth by the price of time ({name})"
    return Section(title=title, record=record, tables=[Table(header, rows, labels=2)], plots=plots)


def _acceptance(name: str, record: Record, cells: list[dict[str, Any]]) -> Section:
    """Of each text the deepest static arm at the smallest batch: every round verifies as deep."""
    alone = min(cell["batch"] for cell in cells)
    deepest = max((arm for arm in cells[0]["arms"] if arm.isdigit()), key=int, default=None)
    by_text = {
        _text(cell): cell["arms"][deepest]["acceptance_per_position"]
        for cell in cells
        if deepest is not None and cell["batch"] == alone
    }
    most = max(map(len, by_text.values()), default=0)
    places = [str(place + 1) for place in range(most)]
    rows = [[text, *map(ratio, shares), *[ABSENT] * (most - len(shares))] for text, shares in by_text.items()]
    series = {text: [*shares, *[None] * (most - len(shares))] for text, shares in by_text.items()}
    plots = [line_plot("All drafts so far accepted", places, series, x_name="draft", y_name="share")] if places else []
    table = Table(["text", *(f"drafts 1..{place}" for place in places)], rows)
    return Section(title=f"Acceptance by position ({name})", record=record, tables=[table], plots=plots)


def _replay(name: str, record: Record, day: dict[str, Any]) -> Section:
    hours = day["hours"]
    arms = list(day["arms"])
    rows = [
        [str(hour), figure(one["rate"]), *(_speed(one["tokens_per_busy_second"][arm]) for arm in arms)]
        for hour, one in enumerate(hours)
    ]
    rows.append(["all", "", *(figure(day["arms"][arm]["tokens_per_second"]) for arm in arms)])
    series = {arm: [one["tokens_per_busy_second"][arm] for one in hours] for arm in arms}
    rates = [f"{one['rate']:.1f}" for one in hours]
    plot = line_plot("A day of load", rates, series, x_name="requests/s, hour by hour", y_name="tokens/busy s")
    note = (
        f"Auto over the best single static depth ({day['best_static']}): {ratio(day['auto_over_best'])}; over off: "
        f"{ratio(day['auto_over_off'])}. The luckiest static depth of each hour made "
        f"{ratio(day.get('luckiest_by_hour_over_best'))} of the best. An hour takes {day['hour_s']:g} s; "
        "arms take turns within it."
    )
    table = Table(["hour", "requests/s", *(f"{arm}, tokens/s" for arm in arms)], rows)
    return Section(title=f"A day of load ({name})", record=record, tables=[table], plots=[plot], notes=[note])


def _speed(value: float | None) -> str:
    return ABSENT if value is None else figure(value)


def _decisions(name: str, record: Record, took: dict[str, dict[str, float]]) -> Section:
    parts = list(next(iter(took.values())))
    rows = [[sequences, *(figure(us[part]) for part in parts)] for sequences, us in took.items()]
    note = 'Plans are remade after some rounds only; "a round" is the mean over all of them.'
    table = Table(["sequences", *(f"{part}, us" for part in parts)], rows)
    return Section(title=f"What deciding takes ({name})", record=record, tables=[table], notes=[note])
