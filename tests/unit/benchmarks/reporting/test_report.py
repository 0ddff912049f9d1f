"""The report of whatever results there are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reporting.report import load, markdown, page, sections_of

RUN = {"machine": "a processor, 2 cores", "date": "2026-01-02", "OMP_NUM_THREADS": "1"}


def arm(speed: float, over_off: float, acceptance: float | None) -> dict[str, Any]:
    return {
        "tokens_per_second": speed, "over_off": over_off, "first_token_s": 0.01, "prompt_tokens_per_second": 3200.0,
        "acceptance": acceptance, "mean_depth": 2.0, "tokens_per_round": 1.5,
    }  # fmt: skip


def decoded(batch: int, prompt_tokens: int) -> dict[str, Any]:
    arms = {"off": arm(700.0, 1.0, None), "4": arm(1200.0, 1.71, 0.6), "auto": arm(1400.0, 2.0, 0.7)}
    return {"kind": "code", "temperature": 0.8, "prompt_tokens": prompt_tokens, "batch": batch, "arms": arms}


def raced(speed: float) -> dict[str, Any]:
    return {
        "tokens_per_second": {"outrider": speed, "other": speed / 2}, "first_over_it": {"outrider": 1.0, "other": 2.0},
        "same_first_tokens": {"outrider": 8, "other": 8}, "of_tokens": 8, "all": {},
    }  # fmt: skip


PERCENTILES = {"p50": 0.01, "p90": 0.02, "p99": 0.03}
BY_ROWS = {
    rows: {"us": 10.0, "gb_per_s": 15.0, "share": 0.75, "gflop_per_s": 5.0, "over_one_row": 1.0} for rows in ("1", "4")
}
ROUND = {"us": {"1": 100.0, "2": 110.0}, "over": {"1": 1.0, "2": 1.1}}
HEAD = {"first_over_round": 0.09, "further_over_round": 0.05}
RESULTS: dict[str, dict[str, Any]] = {
    "decode": {"command": "benchmarks/engine/decode.py", "cases": [decoded(1, 32), decoded(8, 32), decoded(1, 512)]},
    "race": {
        "command": "benchmarks/peers/race.py", "threads": 2, "versions": {"outrider": "1", "other": "2"},
        "absent": {"third": "it is not installed"}, "cases": {"code x1": raced(700.0), "prefill 512": raced(1700.0)},
    },
    "arrival_rates": {
        "command": "benchmarks/serving/arrival_rates.py", "tokens": 64, "temperature": 0.8,
        "windows": [
            {
                "rate": 4, "speculation": "auto", "requests": 9, "errors": {}, "tokens_per_second": 80.0,
                "first_token_s": PERCENTILES, "between_tokens_s": None, "between_messages_s": None,
                "end_to_end_s": PERCENTILES,
            }
        ],
    },
    "auto_against_depths": {
        "command": "benchmarks/speculation/auto_against_depths.py", "tokens": 96, "threads": 2,
        "cells": [
            {
                "kind": "code", "temperature": 0.8, "batch": 4, "best_static": "2", "auto_over_best": 1.04,
                "auto_over_off": 1.56,
                "arms": {
                    name: {"tokens_per_second": speed, "all": [], "mean_depth": 2.0, "acceptance_per_position": by}
                    for name, speed, by in (("off", 200.0, []), ("2", 300.0, [0.7, 0.5]), ("auto", 312.0, [0.8]))
                },
            }
        ],
        "replay": {
            "hour_s": 5.0, "hours": [{"rate": 1.5, "tokens_per_busy_second": {"off": 100.0, "auto": None}}],
            "arms": {"off": {"tokens_per_second": 100.0}, "auto": {"tokens_per_second": 150.0}},
            "best_static": "off", "auto_over_best": 1.5, "auto_over_off": 1.5, "luckiest_by_hour_over_best": 1.0,
        },
        "decision_us": {"1": {"asked": 2.0, "depths": 20.0, "slots": 15.0, "learning": 40.0}},
    },
    "round_parts": {
        "command": "benchmarks/engine/round_parts.py", "threads": 1,
        "rounds": {"1 row, context 128": {"us": {"call": 10.0, "attention": 90.0}, "measured_us": 101.0}},
        "engine": {"off, batch 1": {"us": {"schedule": 20.0, "rest": -1.0}, "rounds": 9, "tokens_per_round": 1.0}},
    },
    "cpu_kernels": {
        "command": "benchmarks/kernels/cpu_kernels.py",
        "bandwidth": {"1": {"gb_per_s": 20.0}}, "last_level_cache_bytes": 2**25,
        "linear": [
            {"product": "head", "outputs": 64, "inputs": 32, "kind": "int8", "threads": 1, "by_rows": BY_ROWS},
        ],
        "by_threads": {
            "1": {
                "stage": {
                    "us": dict.fromkeys(("round", "layers", "dense layers"), ROUND["us"]) | {"no layers": {"1": 9.0}},
                    "over_one_row": dict.fromkeys(("round", "layers", "dense layers"), ROUND["over"]),
                    "one_row_weights": {"bytes": 2e6, "gb_per_s": 15.0, "share": 0.75},
                },
                "attention": {"512": {n: {"us": 30.0, "gb_per_s": None, "share": None} for n in ("1", "4")}},
                "draft": {"full head": HEAD, "cut head": HEAD, "cut_to": 1024, "cut_is_the_checkpoints": True},
                "sample_us": {"draw, T=0, 1 rows": 30.0},
            }
        },
    },
    "drafters": {
        "command": "benchmarks/speculation/drafters.py", "tokens": 96,
        "cases": [
            {
                "kind": "edit", "temperature": 0.0, "batch": 1, "auto_over_best": 1.12, "lookup_over_mtp": 1.08,
                "arms": {
                    who: {"tokens_per_second": speed, "tokens_per_round": a_round}
                    for who, speed, a_round in (("off", 293.0, 1.0), ("mtp", 876.0, 6.6), ("auto", 904.0, 9.0))
                },
            }
        ],
    },
    "stage_link": {
        "command": "benchmarks/parallel/stage_link.py",
        "added_us": {"shared memory": {"median": 120.0, "p90": 200.0}},
    },
}  # fmt: skip


def written(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(RESULTS[name] | RUN))
    return folder


@pytest.mark.parametrize("name", RESULTS)
def test_every_kind_of_results_is_shown_by_itself_with_its_command_machine_and_date(name: str, tmp_path: Path) -> None:
    found = load(written(tmp_path, name))

    text = markdown(sections_of(found))
    assert [each[0] for each in found] == [name]
    assert text.startswith("### ")
    assert f"(`{RESULTS[name]['command']}`, a processor, 2 cores, OMP_NUM_THREADS=1, 2026-01-02)" in text


def test_figures_stand_in_their_rows() -> None:
    text = markdown(sections_of([("decode", "decode-x", RESULTS["decode"] | RUN)]))

    assert "| code, T=0.8 | 8 | 700 | 1,200 | 1,400 | 2.00 |" in text
    assert "| code, T=0.8 | auto | 1,400 | 2.00 | 70% | 2.00 | 1.50 |" in text


def test_auto_stands_beside_the_best_static_depth_and_acceptance_by_position() -> None:
    text = markdown(sections_of([("auto_against_depths", "speculation-x", RESULTS["auto_against_depths"] | RUN)]))

    assert "| code, T=0.8 | 4 | 200 | 300 | 312 | 2 | 1.04 | 1.56 |" in text
    assert "| code, T=0.8 | 0.70 | 0.50 |" in text
    assert "| 0 | 1.50 | 100 | – |" in text
    assert "| all |  | 100 | 150 |" in text


def test_simulated_depths_are_told_with_the_worst_of_their_seeds() -> None:
    cell = {
        "kind": "code, T=0.8", "batch": 4, "best_static": 2, "best_over_off": 1.25,
        "auto_over_best": 0.98, "worst_over_best": 0.91, "auto_over_off": 1.23, "worst_over_off": 1.14,
    }  # fmt: skip
    record = {"command": "benchmarks/speculation/simulated_depths.py", "seeds": 4, "cells": [cell]} | RUN
    text = markdown(sections_of([("simulated_depths", "simulated-x", record)]))

    assert "| code, T=0.8 | 4 | 2 | 1.25 | 0.98 | 0.91 | 1.23 | 1.14 |" in text


def test_who_drafts_is_told_with_what_each_brings() -> None:
    text = markdown(sections_of([("drafters", "drafters-x", RESULTS["drafters"] | RUN)]))

    assert "| edit, T=0 | 1 | 293 (1.0) | 876 (6.6) | 904 (9.0) | 1.12 | 1.08 |" in text


def test_who_did_not_race_is_told_with_the_reason() -> None:
    text = markdown(sections_of([("race", "race-x", RESULTS["race"] | RUN)]))

    assert "| other | 350 (2.00) | 850 (2.00) |" in text
    assert "third did not race: it is not installed" in text


def test_the_page_stands_alone(tmp_path: Path) -> None:
    html = page(sections_of(load(written(tmp_path, *RESULTS))))

    assert html.count("<svg") >= 10
    assert not re.search(r"<script|<link|<img|https?://|url\(", html)
    assert "prefers-color-scheme: dark" in html


def test_results_in_the_reports_order_whatever_their_names(tmp_path: Path) -> None:
    found = load(written(tmp_path, "cpu_kernels", "decode", "race"))

    assert [each[0] for each in found] == ["race", "decode", "cpu_kernels"]


def test_files_of_another_shape_or_broken_ones_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "older.json").write_text(json.dumps({"command": "benchmarks/engine/decode.py --tokens 96", "code": {}}))
    (tmp_path / "foreign.json").write_text(json.dumps({"model": "scout"}))

    assert [each[0] for each in load(written(tmp_path, "decode"))] == ["decode"]
    assert "broken.json is left out" in capsys.readouterr().err
