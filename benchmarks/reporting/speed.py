"""The sections on how fast it is: decoding, the race, serving under load. Pure: records in, sections out."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common.results import counted
from benchmarks.reporting.section import Record, Section
from benchmarks.reporting.svg import bar_plot, line_plot
from benchmarks.reporting.tables import ABSENT, Table, figure, ratio, share

Case = dict[str, Any]


def decoding(name: str, record: Record) -> list[Section]:
    """Of engine/decode.py: by batch, by depth, and by prompt length, where more than one was measured."""
    cases = record["cases"]
    shortest = min(case["prompt_tokens"] for case in cases)
    alone = min(case["batch"] for case in cases)
    short = [case for case in cases if case["prompt_tokens"] == shortest]
    sections = [_by_depth(name, record, [case for case in short if case["batch"] == alone])]
    if len({case["batch"] for case in short}) > 1:
        sections.insert(0, _by_batch(name, record, short))
    longer = {_text(case) for case in cases if case["prompt_tokens"] > shortest}
    if longer:
        single = [case for case in cases if case["batch"] == alone and _text(case) in longer]
        sections.append(_by_prompt(name, record, single))
    return sections


def _text(case: Case) -> str:
    return f"{case['kind']}, T={case['temperature']:g}"


def _arms(cases: Sequence[Case]) -> list[str]:
    """Those of every case, in their order."""
    return [arm for arm in cases[0]["arms"] if all(arm in case["arms"] for case in cases)]


def _label(arm: str) -> str:
    return f"{arm} drafts" if arm.isdigit() and arm != "1" else "1 draft" if arm == "1" else arm


def _by_batch(name: str, record: Record, cases: list[Case]) -> Section:
    arms, batches = _arms(cases), sorted({case["batch"] for case in cases})
    header = ["text", "batch", *(f"{_label(arm)}, tokens/s" for arm in arms), "auto / off"]
    rows = [
        [
            _text(case),
            str(case["batch"]),
            *(figure(case["arms"][arm]["tokens_per_second"]) for arm in arms),
            _gain(case),
        ]
        for case in cases
    ]
    plots = []
    for text in dict.fromkeys(map(_text, cases)):
        by_batch = {case["batch"]: case["arms"] for case in cases if _text(case) == text}
        series = {_label(arm): [_speed(by_batch.get(batch), arm) for batch in batches] for arm in arms}
        plots.append(line_plot(text, [str(b) for b in batches], series, x_name="batch", y_name="tokens/s"))
    return Section(
        title=f"Tokens a second by batch ({name})", record=record, tables=[Table(header, rows, labels=2)], plots=plots
    )


def _speed(arms: Case | None, arm: str) -> float | None:
    return arms[arm]["tokens_per_second"] if arms else None


def _gain(case: Case) -> str:
    return ratio(case["arms"].get("auto", {}).get("over_off"))


def _by_depth(name: str, record: Record, cases: list[Case]) -> Section:
    header = ["text", "speculation", "tokens/s", "over off", "accepted", "mean depth", "tokens a round"]
    rows = []
    for case in cases:
        for arm, figures in case["arms"].items():
            words = [_text(case), _label(arm), figure(figures["tokens_per_second"]), ratio(figures.get("over_off"))]
            depths = [share(figures["acceptance"]), ratio(figures["mean_depth"]), ratio(figures["tokens_per_round"])]
            rows.append(words + depths)
    plots = []
    arms = [arm for arm in _arms(cases) if arm != "off"]
    if arms and all("off" in case["arms"] for case in cases):
        by_text = {_text(case): [case["arms"][arm]["over_off"] for arm in arms] for case in cases}
        plots.append(line_plot("Speed-up by depth", arms, by_text, x_name="drafts a round", y_name="over off"))
        if "auto" in arms:
            gains = {"auto / off": [case["arms"]["auto"]["over_off"] for case in cases]}
            plots.append(bar_plot("Auto over off", [_text(case) for case in cases], gains, y_name="ratio"))
    title = f"Speed-up by depth of drafting, batch {cases[0]['batch']} ({name})"
    return Section(title=title, record=record, tables=[Table(header, rows, labels=2)], plots=plots)


def _by_prompt(name: str, record: Record, cases: list[Case]) -> Section:
    arms = _arms(cases)
    columns = [*(f"{_label(arm)}, tokens/s" for arm in arms), "auto / off", "first token, ms", "prompt tokens/s"]
    rows = []
    for case in cases:
        first = case["arms"][arms[0]]
        speeds = [figure(case["arms"][arm]["tokens_per_second"]) for arm in arms]
        reading = [figure(1e3 * first["first_token_s"]), figure(first["prompt_tokens_per_second"])]
        rows.append([_text(case), str(case["prompt_tokens"]), *speeds, _gain(case), *reading])
    note = f"Reading the prompt is timed with speculation {arms[0]}."
    table = Table(["text", "prompt tokens", *columns], rows, labels=2)
    title = f"By length of the prompt, batch {cases[0]['batch']} ({name})"
    return Section(title=title, record=record, tables=[table], notes=[note])


def racing(name: str, record: Record) -> list[Section]:
    """Of peers/race.py: everyone's figures, and the first contestant's over each."""
    cases, contestants = record["cases"], list(record["versions"])
    if not cases:
        return []
    header = ["tokens/s (the first one's over it)", *cases]
    rows = [[who, *(_place(case, who) for case in cases.values())] for who in contestants]
    notes = [
        f"{counted(record['threads'], 'thread')}. "
        + "; ".join(f"{who}: {version}" for who, version in record["versions"].items())
    ]
    notes += [f"{who} did not race: {why}" for who, why in record.get("absent", {}).items()]
    plots = []
    reading = [case for case in cases if case.startswith("prefill")]
    for title, chosen in (("Decoding", [case for case in cases if case not in reading]), ("Reading a prompt", reading)):
        if chosen:
            series = {who: [cases[case]["tokens_per_second"].get(who) for case in chosen] for who in contestants}
            plots.append(bar_plot(title, chosen, series, y_name="tokens/s"))
    return [
        Section(
            title=f"Against other engines ({name})",
            record=record,
            tables=[Table(header, rows)],
            plots=plots,
            notes=notes,
        )
    ]


def _place(case: Case, who: str) -> str:
    speed = case["tokens_per_second"].get(who)
    return ABSENT if speed is None else f"{figure(speed)} ({ratio(case['first_over_it'][who])})"


def serving(name: str, record: Record) -> list[Section]:
    """Of serving/arrival_rates.py: latencies by rate, as clients see them."""
    windows = record["windows"]
    times = {"first_token_s": "first token", "between_tokens_s": "between tokens", "end_to_end_s": "end to end"}
    header = ["requests/s", "speculation", "requests", "errors", "tokens/s"]
    header += [f"{words}, ms: p50 / p90 / p99" for words in times.values()]
    rows = []
    for window in windows:
        counts = [str(window["requests"]), str(sum(window["errors"].values())), figure(window["tokens_per_second"])]
        latencies = [_percentiles(window[key]) for key in times]
        rows.append([f"{window['rate']:g}", window["speculation"], *counts, *latencies])
    plots = [_latency_plot(windows, key, words) for key, words in times.items()]
    note = f"{record['tokens']} tokens of output a request, T={record['temperature']:g}; requests arrive by chance."
    table = Table(header, rows, labels=2)
    return [Section(title=f"Serving under load ({name})", record=record, tables=[table], plots=plots, notes=[note])]


def _percentiles(values: dict[str, float] | None) -> str:
    return " / ".join(figure(1e3 * value) for value in values.values()) if values else ABSENT


def _latency_plot(windows: Sequence[Case], key: str, words: str) -> str:
    rates = list(dict.fromkeys(window["rate"] for window in windows))
    found = {(window["speculation"], window["rate"]): window[key] for window in windows}
    modes = dict.fromkeys(window["speculation"] for window in windows)

    def milliseconds(percent: str) -> Callable[[Any], float | None]:
        return lambda values: 1e3 * values[percent] if values else None

    series = {
        f"{mode}, {percent}": [milliseconds(percent)(found.get((mode, rate))) for rate in rates]
        for mode in modes
        for percent in ("p50", "p99")
    }
    return line_plot(words.capitalize(), [f"{rate:g}" for rate in rates], series, x_name="requests/s", y_name="ms")
