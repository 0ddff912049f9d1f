"""The demo's page: what it is told is in it, safely, and a real browser shows it without an error."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from small_tokenizer import write_tokenizer

from outrider.cluster.demo import Delta
from outrider.cluster.demo_page import Replay, make_replay, page
from outrider.cluster.demo_report import DemoReport, DomainReport
from outrider.cluster.status import RankStatus
from outrider.workers.text.tokenizer import Tokenizer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    loaded = Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("model")))
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def replay(tokenizer: Tokenizer) -> Replay:
    ids = tokenizer.encode("<script>alert(1)</script> and more")[1:]  # but for the beginning of the sequence
    deltas = [Delta(tuple(ids[:3]), 2, 4, 0.5), Delta(tuple(ids[3:]), 1, 1, 0.75)]
    return make_replay("code_sampled", "x" * 1000 + "</script>", deltas, tokenizer)


@pytest.fixture(scope="module")
def shown(replay: Replay) -> str:
    def domain(speedup: float) -> DomainReport:
        return DomainReport(
            prompts=1,
            tokens=10,
            tokens_per_second_off=100.0,
            tokens_per_second_auto=100.0 * speedup,
            speedup=speedup,
            acceptance_per_position=[0.9, 0.5],
            mean_tokens_per_round=2.0,
        )

    report = DemoReport(
        model="tiny",
        pipeline_parallel_size=2,
        identical=True,
        domains={"code": domain(2.5), "code_sampled": domain(1.25)},
    )
    layers = ((0, 4), (4, 9))
    ranks = [
        RankStatus(rank=n, stage=n, first_layer=a, end_layer=b, node="n", pid=1, device="cpu", state="ready", busy=0.25)
        for n, (a, b) in enumerate(layers)
    ]
    return page(report, [replay], ranks, "9.9", "a machine")


def test_a_round_shows_its_accepted_drafts_and_how_long_it_took(replay: Replay) -> None:
    first, second = replay.frames

    assert [piece.drafted for piece in first.pieces] == [True, True, False]
    assert (first.drafted, first.accepted, first.tokens, first.seconds) == (4, 2, 3, 0.5)
    assert second.seconds == 0.25
    assert not any(piece.drafted for piece in second.pieces), "a message of several rounds guesses nothing"
    assert (
        "".join(piece.text for frame in replay.frames for piece in frame.pieces) == "<script>alert(1)</script> and more"
    )
    assert len(replay.prompt) == 400


def test_the_page_is_whole_asks_for_nothing_and_runs_no_text(shown: str) -> None:
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', shown, re.S)

    assert data is not None
    told = json.loads(data[1])
    assert told["replays"][0]["prompt"].endswith("</script>")
    assert told["stages"][1] == {"stage": 1, "layers": "4..8", "busy": 0.25}
    assert shown.count("<script") == 2
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\((?!#)', shown) == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1100])
def test_a_browser_draws_it_without_an_error(shown: str, width: int, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(shown, "utf-8")
    options = [
        f"--{option}" for option in (*QUIET, f"window-size={width},900", f"user-data-dir={tmp_path / 'profile'}")
    ]

    done = subprocess.run(
        [str(CHROMIUM), "--headless", *options, "--enable-logging=stderr", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert "CONSOLE" not in done.stderr
    assert "Identical: speculation changed no token" in done.stdout
    assert len(re.findall(r"<tr><th scope=\"row\">", done.stdout)) == 2
    assert done.stdout.count('class="draft"') == 2
    assert "2 of 2: 1 drafted, 1 accepted" in done.stdout
    assert all(f'id="{plot}" role="img"' in done.stdout for plot in ("speed", "acceptance", "depth", "price", "busy"))
    assert not re.search(r'(?:width|height|x|y|points)="[^"]*(?:NaN|Infinity|undefined)', done.stdout)
