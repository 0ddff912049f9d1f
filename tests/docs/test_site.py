"""The documentation's site: built strictly, and its reference made from the code."""

import functools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser
from grids import chequered
from mkdocs.commands.build import build
from mkdocs.config import load_config

from outrider.cluster.config import ServeSettings
from outrider.workers.serving.observability.metrics import DEPRECATED
from outrider.workers.types.settings import settings_of

ROOT = Path(__file__).parents[2]
PAGES = ["", "tutorial/", "explanation/zero-difference/", "explanation/mtp/", "helm-comparison/", "reference/values/"]
CUT_DRAWING = "(one) => /[┌│└]/.test(one.textContent) && one.scrollWidth > one.clientWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(target), strict=True))
    return target


def text(site: Path, page: str) -> str:
    return re.sub(r"<[^>]+>", "", (site / page / "index.html").read_text())


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    built = list(site.rglob("index.html"))

    assert len(built) > 12
    for page in built:
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert loaded == [], page


def test_the_reference_names_every_setting_command_and_metric(site: Path) -> None:
    settings, commands, metrics = (text(site, f"reference/{page}") for page in ("configuration", "cli", "metrics"))

    assert [name for name in settings_of(ServeSettings) if name not in settings] == []
    assert [name for name in ("serve", "generate", "status", "demo") if f"outrider {name}" not in commands] == []
    for name in ("outrider_gateway_requests_total", "ray_outrider_spec_decode_num_accepted_tokens_per_pos_total"):
        assert name in metrics
    for old, new in DEPRECATED.items():
        assert f"ray_{old}gauge" in metrics.replace("\n", ""), old
        assert f"deprecated: use {new}." in metrics
    assert "rpc Generate(GenerateRequest)" in text(site, "reference/grpc")
    assert "redundant expert" in text(site, "reference/glossary")


def test_every_drawing_is_shown_with_words_for_those_who_do_not_see_it_and_can_be_dark(site: Path) -> None:
    shown = {
        Path(source).name: words
        for page in site.rglob("index.html")
        for words, source in re.findall(r'<img alt="([^"]*)" src="([^"]*drawings/[^"]*)"', page.read_text())
    }
    drawings = {path.name: path.read_text() for path in (ROOT / "docs" / "drawings").iterdir()}

    assert set(shown) == set(drawings)
    assert [name for name, words in shown.items() if len(words) < 60] == []
    assert [name for name, text in drawings.items() if "prefers-color-scheme: dark" not in text] == []


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Of the site, served: from files a browser would not load its search."""
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    chequered({name: name for name in PAGES}, {"phone": PHONE, "desktop": DESKTOP}, {"light": False, "dark": True}),
)
def test_a_browser_shows_a_page_without_an_error(
    browser: Browser, address: str, name: str, width: int, dark: bool
) -> None:
    with browser.open(f"{address}/{name}", width=width, dark=dark) as page:
        assert page.complaints == []
        assert page.overflow() == 0
        assert page.value("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
        assert page.value("document.querySelector('article h1').checkVisibility()")
        assert (
            width == PHONE
            or page.value(f"[...document.querySelectorAll('pre code')].filter({CUT_DRAWING}).length") == 0
        )
