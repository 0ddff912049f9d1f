"""`outrider demo` as a process: its file, its table, and nothing left."""

import json
import re
from pathlib import Path

import pytest
from distributed.served import Outrider

DOMAINS = ("code", "prose", "code_sampled", "prose_sampled")


def test_the_demo_measures_both_modes_writes_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    file, page = tmp_path / "demo.json", tmp_path / "demo.html"

    run = Outrider(
        "demo", "--json", str(file), "--report", str(page), "--prompts", "1", "--max-tokens", "16", "--repeats", "1"
    )

    assert run.finish(within_s=150) == 0, run.errors
    assert run.left() == []
    report = json.loads(file.read_text())
    assert (report["model"], report["pipeline_parallel_size"], report["identical"]) == ("scout", 2, True)
    assert tuple(report["domains"]) == DOMAINS
    for domain in report["domains"].values():
        assert domain["tokens"] > 0
        assert domain["speedup"] == pytest.approx(domain["tokens_per_second_auto"] / domain["tokens_per_second_off"])
        assert all(0 <= share <= 1 for share in domain["acceptance_per_position"])
    assert "identical" in "".join(run.output)
    told = json.loads(re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text())[0])
    assert sorted(replay["domain"] for replay in told["replays"]) == sorted(DOMAINS)
    first, last = told["stages"]
    assert 0 < first["drafting"] < 1
    assert last["drafting"] == 0 < last["computing"]
