"""The page at `/` in a real browser, over a gateway that serves scout: what it shows, by keys, at every width."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page
from gateway.http.served import Served, serve
from gateway.test_auth import BOSS, TEXT, line

from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.proto.cluster_pb2 import EngineStatus, SpeculationStatus

WIDTHS = (400, 800, 1400)
WAIT_S = 60.0
TAB, ENTER, SPACE = ("Tab", 9), ("Enter", 13, "\r"), (" ", 32, " ")
RIGHT, ESCAPE = ("ArrowRight", 39), ("Escape", 27)
BACK = ("rgb(255, 255, 255)", "rgb(20, 23, 27)")  # light and dark
GREEDY = {"temperature": 0, "max_tokens": 64}
ANSWERS = "document.querySelectorAll('.assistant').length"
SAID = "([...document.querySelectorAll('.assistant')].at(-1)?.querySelector('.text').textContent ?? '')"
DONE = "document.querySelector('#view-chat .first') !== null"  # the button says Send again


def until(page: Page, expression: str) -> None:
    """Until it holds."""
    end = time.monotonic() + WAIT_S
    while not page.value(expression):
        assert time.monotonic() < end, (expression, page.value("document.body.innerText"))
        time.sleep(0.05)


def types(page: Page, text: str) -> None:
    page.ask("Input.insertText", text=text)


def focus(page: Page, identity: str) -> None:
    """By Tab, as somebody without a mouse has to."""
    for _ in range(30):
        if page.value("document.activeElement.id") == identity:
            return
        page.press(*TAB)
    raise AssertionError(f"Tab does not reach {identity}")


def settle(page: Page, **settings: Any) -> None:
    """Fills in fields of the request by their labels."""
    for label, value in settings.items():
        find = f"[...document.querySelectorAll('label')].find((one) => one.innerText.startsWith({json.dumps(label)}))"
        page.value(f"{find}.querySelector('input').select()")
        page.value(f"{find}.querySelector('input').focus()")
        types(page, str(value))


def answer(served: Served, message: str, **extra: Any) -> Any:
    """The whole answer to the same request, without a browser."""
    body = {"messages": [{"role": "user", "content": message}], **GREEDY, **extra}
    request = urllib.request.Request(f"{served.v1}/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def run(page: Page, message: str) -> None:
    before = page.value(ANSWERS)
    focus(page, "message")
    types(page, message)
    page.press(*ENTER)
    until(page, f"{ANSWERS} === {before + 1} && {SAID}.length > 0 && {DONE}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_whole_and_legible_at_every_width(browser: Browser, scout: Served, width: int, dark: bool) -> None:
    with browser.open(scout.url, width=width, dark=dark) as page:
        until(page, "document.querySelector('dl') !== null")
        settle(page, Temperature=0, Most=64)
        run(page, "def read(path):")
        page.value("document.getElementById('tab-race').click()")
        focus(page, "prompt")
        page.press(*ENTER)
        until(page, "document.querySelector('.mark.good, .mark.bad') !== null")

        assert page.complaints == []
        assert page.overflow() == 0
        assert page.faint() == []
        assert page.unnamed() == []
        assert page.value("getComputedStyle(document.body).backgroundColor") == BACK[dark]
        drawn = page.value("[...document.querySelectorAll('.plot canvas')].map((one) => one.clientWidth)")
        assert len(drawn) == 5
        assert all(0 < wide <= width for wide in drawn)


def test_it_asks_its_own_gateway_only(browser: Browser, scout: Served) -> None:
    with browser.open(scout.url) as page:
        until(page, "document.querySelector('dl') !== null")
        asked = page.value("performance.getEntriesByType('resource').map((one) => one.name)")

    assert any(url.endswith("/vendor/preact.mjs") for url in asked)
    assert all(url.startswith((scout.url, "data:")) for url in asked)


def test_its_files_name_no_other_place_and_carry_their_licences(scout: Served) -> None:
    files = Path(str(resources.files("outrider.cluster.gateway").joinpath("page")))
    own = [file for file in files.iterdir() if file.is_file()]
    for file in own:
        assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"(?m)^\s*//.*|  // .*", "", file.read_text("utf-8"))), file
    assert {file.name for file in (files / "vendor").glob("LICENSE.*")} == {f"LICENSE.{one}" for one in LIBRARIES}
    with urllib.request.urlopen(f"{scout.url}/") as response:
        policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


LIBRARIES = ("preact", "htm", "uplot")


def test_a_chat_by_keys_alone_streams_the_gateways_text_with_its_drafts_tinted(browser: Browser, scout: Served) -> None:
    prompt = "def read(path):\n    with open(path) as file:"
    wanted = answer(scout, prompt, speculation=4)
    with browser.open(scout.url) as page:
        until(page, "document.querySelector('h1').textContent.includes('serves small')")
        settle(page, Temperature=0, Most=64)
        page.value("document.activeElement.blur()")
        focus(page, "message")
        types(page, prompt)
        focus(page, "speculation")
        page.press("4", ord("4"), "4")
        focus(page, "message")
        page.press(*ENTER)
        until(page, f"{SAID}.length > 0 && {DONE}")
        said = page.value(SAID)
        tinted = page.value("document.querySelectorAll('.assistant .text .draft').length")
        figures = page.value("document.querySelector('.assistant .figures').textContent")
        page.press(*TAB)
        assert page.value("document.activeElement.textContent") == "Send"

    assert said == wanted["choices"][0]["message"]["content"]
    stats = wanted["metrics"]["speculative_decoding"]
    assert stats["num_accepted_draft_tokens"] > 0
    assert tinted > 0
    count = wanted["usage"]["completion_tokens"]
    assert figures.startswith(f"{count} tokens · ")
    drafts = f"{stats['num_accepted_draft_tokens']} of {stats['num_draft_tokens']} drafts accepted"
    assert drafts in figures


def test_nothing_is_tinted_without_speculation_and_the_next_turn_has_the_first(browser: Browser, scout: Served) -> None:
    with browser.open(scout.url) as page:
        settle(page, Temperature=0, Most=8)
        focus(page, "speculation")
        page.press("o", ord("O"), "o")
        run(page, "x = 1")
        first = page.value(SAID)
        assert page.value("document.querySelectorAll('.assistant .draft').length") == 0
        run(page, "y = 2")
        second = page.value(SAID)
    conversation = [
        {"role": "user", "content": "x = 1"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "y = 2"},
    ]

    assert first == answer(scout, "x = 1", max_tokens=8)["choices"][0]["message"]["content"]
    again = answer(scout, "", messages=conversation, max_tokens=8)
    assert second == again["choices"][0]["message"]["content"]


def test_escape_stops_an_answer(browser: Browser, scout: Served) -> None:
    with browser.open(scout.url) as page:
        settle(page, Most=3000, Temperature=1, Seed=2)  # a long one
        focus(page, "message")
        types(page, "The history of the world, in great detail:")
        page.press(*ENTER)
        until(page, f"{SAID}.length > 0")
        page.press(*ESCAPE)
        until(page, DONE)
        assert page.value("document.querySelector('#view-chat [role=alert]').textContent") == "Stopped."
        assert page.value("document.activeElement.id") == "message"
    end = time.monotonic() + WAIT_S
    while scout.cluster.gateway.live_requests:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_off_and_auto_race_to_the_same_text(browser: Browser, scout: Served, apart: bool) -> None:
    with browser.open(scout.url) as page:
        focus(page, "tab-chat")
        page.press(*RIGHT)
        assert page.value("document.activeElement.id") == "tab-race"
        focus(page, "prompt")
        if apart:
            focus(page, "apart")
            page.press(*SPACE)
            assert page.value("document.activeElement.checked")
            focus(page, "prompt")
        page.press(*ENTER)
        until(page, "document.querySelector('.mark.good, .mark.bad, .mark.problem') !== null")
        mark = page.value("document.querySelector('.mark').textContent")
        texts = page.value("[...document.querySelectorAll('.lane .text')].map((one) => one.textContent)")

    assert mark.startswith("Identical: ")
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{}", ""),
        ("{tokenIds: [1, 3]}", "they part at token 2"),
        ("{tokenIds: [1]}", "they part at token 2"),
        ("{tokenIds: [1, 2, 3]}", "they part at token 3"),
        ("{pieces: [{text: 'b', reasoning: false, drafted: true}]}", "the same tokens, but another text"),
        ("{pieces: [{text: 'a', reasoning: false, drafted: true}]}", ""),
        ("{pieces: [{text: 'a', reasoning: true, drafted: true}]}", "the same tokens, but another text"),
        ("{finish: 'length'}", "one ended with stop, the other with length"),
    ],
)
def test_the_mark_is_given_for_equal_outputs_only(browser: Browser, scout: Served, change: str, said: str) -> None:
    one = "{tokenIds: [1, 2], pieces: [{text: 'a', reasoning: false, drafted: false}], finish: 'stop'}"
    with browser.open(scout.url) as page:
        found = page.value(f"import('/page/api.mjs').then((m) => m.difference({one}, {{...{one}, ...{change}}}))")

    assert found == said


def test_the_status_is_shown_as_it_changes(browser: Browser, scout: Served) -> None:
    pairs = "[...document.querySelectorAll('dl div')].map((one) => [...one.children].map((x) => x.textContent))"
    figures = f"Object.fromEntries({pairs})"
    plots = "[...document.querySelectorAll('figure')].map((one) => one.getAttribute('aria-label'))"
    with browser.open(scout.url) as page:
        until(page, "document.querySelector('dl') !== null")
        speculation = SpeculationStatus(
            setting="auto", draft_depth=3.5, speedup=1.75, mean_accepted_length=2.25, alarms={"cache_stale": 0}
        )
        speculation.drafted_per_position.extend([100, 50, 0])
        speculation.accepted_per_position.extend([80, 25, 0])
        scout.show(EngineStatus(running=4, waiting=2, kv_cache_usage=0.5, speculation=speculation))
        until(page, f"({figures})['Running'] === '4'")
        shown, told = page.value(figures), page.value(plots)
        text = page.value("document.querySelector('aside').innerText")
        speculation.disabled_rounds, speculation.disabled_reason = 40, "it costs more than it brings"
        speculation.alarms["cache_stale"] = 1
        scout.show(EngineStatus(speculation=speculation))
        until(page, "document.querySelector('aside').innerText.includes('it costs more than it brings')")
        assert "sign of a broken drafter: cache_stale" in page.value("document.querySelector('aside').innerText")
    scout.show(EngineStatus())

    assert (shown["Waiting"], shown["Speed-up"], shown["Draft depth"]) == ("2", "1.75x", "3.5")
    assert (shown["KV cache"], shown["Accepted length"], shown["Speculation"]) == ("50 %", "2.25", "auto")
    assert "broken" not in text
    assert told[0] == "Draft depth: 3.5"
    assert told[1] == "Speed-up over no speculation: 1.75x"
    assert told[2].endswith(": 0.80 0.50")
    assert told[3] == "Load: sequences: 4 running, 2 waiting"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("access") / "tokens"
    file.write_text(line("writer", "inference", TEXT) + line("boss", "admin,inference", BOSS))
    yield from serve(access=AccessSettings(auth_token_file=file))


def enter(page: Page, token: str) -> None:
    page.value("document.getElementById('token').select()")
    types(page, token)
    page.press(*ENTER)


def test_a_locked_gateway_is_opened_with_a_token(browser: Browser, locked: Served) -> None:
    with browser.open(locked.url) as page:
        until(page, "document.querySelector('header [role=alert]')?.textContent.startsWith('no valid token')")
        assert page.value("document.activeElement.id") == "token"
        enter(page, TEXT)
        until(page, "document.querySelector('h1').textContent.includes('serves small')")
        until(page, "document.querySelector('aside').innerText.includes('needs the role admin')")
        settle(page, Temperature=0, Most=8)
        run(page, "x = 1")
        focus(page, "access")
        page.press(*ENTER)
        focus(page, "token")
        enter(page, BOSS)
        until(page, "document.querySelector('dl') !== null")
        assert page.value("document.querySelector('header [role=alert]')") is None
        assert page.value("document.documentElement.outerHTML").find(BOSS) == -1, "a token is no part of the page"
