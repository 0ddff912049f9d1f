"""The sections on where time goes: a round by part, the kernels, the links. Pure: records in, sections out."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.results import counted
from benchmarks.reporting.section import Record, Section
from benchmarks.reporting.svg import bar_plot, line_plot, stacked_plot
from benchmarks.reporting.tables import Table, figure, ratio, share

Parts = Mapping[str, float]


def round_profile(name: str, record: Record) -> list[Section]:
    """Of engine/round_parts.py: a round's parts, and an engine's."""
    rounds = {case: figures["us"] for case, figures in record["rounds"].items()}
    engines = {case: figures["us"] for case, figures in record["engine"].items()}
    measured = ["measured in one piece", *(figure(each["measured_us"]) for each in record["rounds"].values())]
    tokens = ["tokens a round", *(ratio(each["tokens_per_round"]) for each in record["engine"].values())]
    threads = f"{counted(record['threads'], 'thread')}."
    return [
        Section(
            title=f"A round's time by part ({name})",
            record=record,
            tables=[_parts_table(rounds, measured)],
            plots=[stacked_plot("A round", list(rounds), _by_part(rounds), unit="us")],
            notes=[f"{threads} Each part is the difference between rounds with and without it."],
        ),
        Section(
            title=f"An engine's round by part ({name})",
            record=record,
            tables=[_parts_table(engines, tokens)],
            plots=[stacked_plot("An engine's round", list(engines), _by_part(engines), unit="us")],
            notes=[f"{threads} Compiled calls stand apart from the Python around them."],
        ),
    ]


def _by_part(cases: Mapping[str, Parts]) -> dict[str, Sequence[float | None]]:
    parts = dict.fromkeys(part for case in cases.values() for part in case)
    used = (part for part in parts if any(case.get(part, 0) >= 0.005 * sum(case.values()) for case in cases.values()))
    return {part: [case.get(part, 0.0) for case in cases.values()] for part in used}


def _parts_table(cases: Mapping[str, Parts], last: list[str]) -> Table:
    parts = dict.fromkeys(part for case in cases.values() for part in case)
    rows = [[part, *(_part(case, part) for case in cases.values())] for part in parts]
    rows.append(["sum", *(figure(sum(case.values())) for case in cases.values())])
    return Table(["microseconds", *cases], [*rows, last])


def _part(case: Parts, part: str) -> str:
    took = case.get(part, 0.0)
    return f"{figure(took)} ({share(took / sum(case.values()))})"


def kernels(name: str, record: Record) -> list[Section]:
    """Of kernels/cpu_kernels.py: what was measured of products, rounds, attention, drafts and draws."""
    sections = [_bandwidth(name, record)]
    if record.get("linear"):
        sections.append(_products(name, record))
    by_threads = record.get("by_threads", {})
    for key, section in (("stage", _stage), ("attention", _attention), ("draft", _draft), ("sample_us", _draws)):
        measured = {threads: parts[key] for threads, parts in by_threads.items() if key in parts}
        if measured:
            sections.append(section(name, record, measured))
    return sections


def _bandwidth(name: str, record: Record) -> Section:
    rows = [[threads, figure(found["gb_per_s"])] for threads, found in record["bandwidth"].items()]
    cache = record["last_level_cache_bytes"] / 2**20
    return Section(
        title=f"The machine's read bandwidth ({name})",
        record=record,
        tables=[Table(["threads", "GB/s"], rows)],
        notes=[f"The fastest plain read of much more than the last-level cache's {cache:.0f} MiB."],
    )


def _products(name: str, record: Record) -> Section:
    listed = record["linear"]
    rows = []
    for one in listed:
        by_rows = one["by_rows"]
        alone, most = by_rows["1"], max(by_rows, key=int)
        size = f"{one['inputs']} to {one['outputs']}"
        speed = [figure(alone["gb_per_s"]), share(alone["share"])]
        growth = [ratio(by_rows[n]["over_one_row"]) for n in ("4", most) if n in by_rows]
        words = [one["product"], size, one["kind"], str(one["threads"])]
        rows.append([*words, *speed, *growth, figure(by_rows[most]["gflop_per_s"])])
    most = max(listed[0]["by_rows"], key=int)
    header = ["product", "size", "weights", "threads", "GB/s", "of bandwidth"]
    header += [*(f"T({n})/T(1)" for n in ("4", most) if n in listed[0]["by_rows"]), f"GFLOP/s at {most} rows"]
    plots = []
    for threads in dict.fromkeys(one["threads"] for one in listed):
        own = [one for one in listed if one["threads"] == threads]
        products, kinds = ([*dict.fromkeys(str(one[key]) for one in own)] for key in ("product", "kind"))
        found = {(one["product"], one["kind"]): one["by_rows"]["1"]["share"] for one in own}
        series = {kind: [_percent(found.get((product, kind))) for product in products] for kind in kinds}
        title = f"One row: share of the read bandwidth, {counted(int(threads), 'thread')}"
        plots.append(bar_plot(title, [_short(product) for product in products], series, y_name="%"))
    title = f"Products over packed weights ({name})"
    return Section(title=title, record=record, tables=[Table(header, rows, labels=3)], plots=plots)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _short(product: str) -> str:
    return product.replace("attention in", "attn in").replace("expert ", "").replace(" and ", "+")


def _stage(name: str, record: Record, measured: Mapping[str, Any]) -> Section:
    rows, plots, notes = [], [], []
    for threads, found in measured.items():
        counts = list(found["us"]["round"])
        for part, took in found["us"].items():
            ratios = found["over_one_row"].get(part, {})
            shown = [f"{figure(took[n])} ({ratio(ratios.get(n, 1.0))})" if n in took else "" for n in counts]
            rows.append([part, threads, *shown])
        chosen = {part: list(found["over_one_row"][part].values()) for part in ("round", "layers", "dense layers")}
        title = f"T(rows)/T(1), {counted(int(threads), 'thread')}"
        plots.append(line_plot(title, counts, chosen, x_name="rows of one sequence", y_name="over one row"))
        read = found["one_row_weights"]
        notes.append(
            f"{counted(int(threads), 'thread')}: a round of one row reads {read['bytes'] / 1e6:.0f} MB of weights at "
            f"{read['gb_per_s']:.1f} GB/s, {share(read['share'])} of the read bandwidth."
        )
    table = Table(["us (over one row)", "threads", *counts], rows, labels=1)
    return Section(title=f"A round by its rows ({name})", record=record, tables=[table], plots=plots, notes=notes)


def _attention(name: str, record: Record, measured: Mapping[str, Any]) -> Section:
    rows = [
        [context, threads, *(cell for n in ("1", "4") for cell in _cache_read(by_rows[n]))]
        for threads, found in measured.items()
        for context, by_rows in found.items()
    ]
    header = [
        "tokens",
        "threads",
        *(f"{words}, {counted(n, 'row')}" for n in (1, 4) for words in ("us a layer", "GB/s")),
    ]
    return Section(title=f"Attention over the cache ({name})", record=record, tables=[Table(header, rows)])


def _cache_read(found: Mapping[str, Any]) -> list[str]:
    return [figure(found["us"]), figure(found["gb_per_s"])]


def _draft(name: str, record: Record, measured: Mapping[str, Any]) -> Section:
    heads = ("full head", "cut head")
    rows = [
        [head, threads, *(figure(found[head][key]) for key in ("first_over_round", "further_over_round"))]
        for threads, found in measured.items()
        for head in heads
    ]
    found = next(iter(measured.values()))
    whose = "the checkpoint's own" if found["cut_is_the_checkpoints"] else "cut for this measurement"
    return Section(
        title=f"A draft over a round of one row ({name})",
        record=record,
        tables=[Table(["head", "threads", "the first", "a further one"], rows)],
        notes=[f"The cut head knows {found['cut_to']} tokens, {whose}."],
    )


def _draws(name: str, record: Record, measured: Mapping[str, Parts]) -> Section:
    ways = list(next(iter(measured.values())))
    rows = [[way, *(figure(found[way]) for found in measured.values())] for way in ways]
    table = Table(["microseconds", *(counted(int(threads), "thread") for threads in measured)], rows)
    return Section(title=f"Head and draws ({name})", record=record, tables=[table])


def stage_link(name: str, record: Record) -> list[Section]:
    """Of parallel/stage_link.py: what a round trip between two stages adds."""
    rows = [[over, figure(found["median"]), figure(found["p90"])] for over, found in record["added_us"].items()]
    table = Table(["microseconds added", "median", "p90"], rows)
    return [Section(title=f"A link between stages ({name})", record=record, tables=[table])]
