"""The demo's page: what it is told is in it, safely, and a real browser shows it without an error."""

import json
import re
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser
from small_tokenizer import write_tokenizer

from outrider.cluster.api.status import WorkerStatus
from outrider.cluster.demo.page import Replay, make_replay, page
from outrider.cluster.demo.report import DemoReport, DomainReport
from outrider.cluster.demo.runs import Delta
from outrider.workers.text.tokenizer import Tokenizer

BACK = ("rgb(255, 255, 255)", "rgb(20, 23, 27)")  # light and dark


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
        WorkerStatus(
            rank=n,
            stage=n,
            first_layer=a,
            end_layer=b,
            node="n",
            pid=1,
            device="cpu",
            state="ready",
            busy=0.25,
            drafting=0.0 if n else 0.125,
        )
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
    assert told["stages"][1] == {"stage": 1, "layers": "4..8", "drafting": 0.0, "computing": 0.25}
    assert shown.count("<script") == 2
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\((?!#)', shown) == []


@pytest.fixture
def url(shown: str, tmp_path: Path) -> str:
    file = tmp_path / "page.html"
    file.write_text(shown, "utf-8")
    return file.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_browser_draws_it_whole_and_legibly(browser: Browser, url: str, width: int, dark: bool) -> None:
    with browser.open(url, width=width, dark=dark) as page:
        drawn = page.value("document.documentElement.outerHTML")

        assert page.complaints == []
        assert page.overflow() == 0
        assert page.faint() == []
        assert page.value("getComputedStyle(document.body).backgroundColor") == BACK[dark]
    assert "Identical: speculation changed no token" in drawn
    assert len(re.findall(r"<tr><th scope=\"row\">", drawn)) == 2
    assert drawn.count('class="draft"') == 2
    assert "2 of 2: 1 drafted, 1 accepted" in drawn
    assert not re.search(r'(?:width|height|x|y|points)="[^"]*(?:NaN|Infinity|undefined)', drawn)


def test_a_screen_reader_has_a_name_for_everything(browser: Browser, url: str) -> None:
    with browser.open(url) as page:
        assert page.unnamed() == []
        plots = page.value("[...document.querySelectorAll('svg')].map((one) => one.getAttribute('aria-label'))")

    assert plots[0] == "code, greedy: 100 off, 250 auto; code, T=0.8: 100 off, 125 auto"
    assert plots[2] == "2 rounds verified 5 drafts, at most 4 in one, and accepted 3"
    assert plots[4].startswith("stage 0: 13 % layers, head and draw, 13 % drafts; stage 1: 25 %")
    assert len(plots) == 5


def test_the_replay_is_played_by_keys_alone(browser: Browser, url: str) -> None:
    with browser.open(url) as page:
        reached = []
        for _ in range(4):
            page.press("Tab", 9)
            reached.append(page.value("document.activeElement.id"))
        assert reached == ["which", "play", "step", "text"]

        page.value("document.getElementById('step').focus()")
        page.press("Home", 36)
        assert page.value("document.getElementById('now').textContent") == "0 of 2"
        page.press("ArrowRight", 39)
        assert page.value("document.getElementById('now').textContent") == "1 of 2: 4 drafted, 2 accepted"
        assert page.value("document.querySelectorAll('#text .now .draft').length") == 2

        page.value("document.getElementById('play').focus()")
        page.press("Enter", 13, "\r")
        page.value("new Promise((done) => setTimeout(done, 1000))")
        assert page.value("document.getElementById('now').textContent") == "2 of 2: 1 drafted, 1 accepted"
        assert page.value("document.getElementById('play').textContent") == "Play", "at the end it stops"
