"""A headless Chromium for tests: pages at a width and in a colour scheme, what they complain of, keys, and pictures.

It is spoken to in its debugging protocol, JSON messages that end with a zero byte, through two pipes.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, DESKTOP = 390, 1280  # widths
_HEIGHT = 900
_OPTIONS = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking")
_OPTIONS += ("disable-component-update", "disable-dev-shm-usage", "remote-debugging-pipe")
_PIPES = 'exec "$@" 3<&$TO 4>&$FROM'  # the descriptors that Chromium reads and writes
_WAIT_S = 30.0
Message = dict[str, Any]


class Browser:
    """One Chromium. `close` ends it."""

    def __init__(self, profile: Path) -> None:
        (read_to, self._to), (self._from, write_from) = _pipe(), _pipe()
        command = [str(CHROMIUM), *(f"--{option}" for option in _OPTIONS), f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["bash", "-c", _PIPES, "bash", *command],
            env={**os.environ, "TO": str(read_to), "FROM": str(write_from)},
            pass_fds=(read_to, write_from),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_to)
        os.close(write_from)
        self._asked, self._unread = 0, b""
        self.events: list[Message] = []

    def open(self, url: str, *, width: int = DESKTOP, dark: bool = False) -> "Page":
        """A page that has loaded."""
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, target, session)
        page.show(url, width, dark)
        return page

    def ask(self, method: str, params: Message, session: str = "") -> Message:
        """The command's result; what happens meanwhile is added to `events`."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": params}
        words = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while words:
            words = words[os.write(self._to, words) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._asked:
                assert "error" not in answer, (method, answer["error"])
                result: Message = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, method: str, session: str) -> None:
        """Until the session has had the event."""
        while not any(one.get("method") == method and one.get("sessionId") == session for one in self.events):
            self.events.append(self._read())

    def _read(self) -> Message:
        until = time.monotonic() + _WAIT_S
        while b"\0" not in self._unread:
            assert select.select([self._from], [], [], max(0.0, until - time.monotonic()))[0], "Chromium says nothing"
            found = os.read(self._from, 1 << 16)
            assert found, "Chromium has ended"
            self._unread += found
        first, self._unread = self._unread.split(b"\0", 1)
        message: Message = json.loads(first)
        return message

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.ask("Browser.close", {})
        self._process.wait(_WAIT_S)
        os.close(self._to)
        os.close(self._from)


class Page:
    """What is open in one tab. A context manager that closes it."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *exception: object) -> None:
        self._browser.ask("Target.closeTarget", {"targetId": self._target})
        self._browser.events.clear()

    def ask(self, method: str, **params: Any) -> Message:
        return self._browser.ask(method, params, self._session)

    def show(self, url: str, width: int, dark: bool) -> None:
        phone = width == PHONE
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=_HEIGHT, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=url)
        self._browser.wait_for("Page.loadEventFired", self._session)

    def value(self, expression: str) -> Any:
        """Of JavaScript; a promise's once it is kept."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, with its number and what it types, e.g. ("Tab", 9) or ("Enter", 13, "\\r")."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of its scripts, and of what it loads."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        own = [one for one in self._browser.events if one.get("sessionId") == self._session]
        return [json.dumps(one["params"])[:500] for one in own if one["method"] in kinds]

    def unnamed(self) -> list[str]:
        """The roles of what a screen reader would announce without a name."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        spoken = [one for one in nodes if not one["ignored"] and one["role"]["value"] in _NAMED]
        return [one["role"]["value"] for one in spoken if not one.get("name", {}).get("value", "").strip()]

    def faint(self) -> list[str]:
        """Texts that stand out from what is behind them by less than WCAG's 4.5 to 1."""
        found: list[str] = self.value(_FAINT)
        return found

    def overflow(self) -> float:
        """Pixels by which it is wider than the window."""
        return float(self.value("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def picture(self, file: Path) -> None:
        """The whole page, as PNG."""
        height = self.value("document.documentElement.scrollHeight")
        width = self.value("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        image = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        file.write_bytes(base64.b64decode(image))


_NAMED = ("button", "link", "image", "slider", "combobox", "textbox", "checkbox", "radio", "table")
_FAINT = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const linear = (one) => one <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((one) => linear(one / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = parts(getComputedStyle(node).backgroundColor);
      if (alpha === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !node.checkVisibility({visibilityProperty: true}) || node.closest("script, style, option")) continue;
    const style = getComputedStyle(node), colour = node.closest("svg") ? style.fill : style.color;
    const front = parts(colour), back = behind(node);
    const alpha = front[3] ?? 1, shown = front.slice(0, 3).map((one, place) => alpha * one + (1 - alpha) * back[place]);
    const [high, low] = [light(shown), light(back)].sort((a, b) => b - a);
    if ((high + .05) / (low + .05) < 4.5) faint.push(`${text.slice(0, 40)}: ${colour} on ${back}`);
  }
  return faint;
})()"""


def _pipe() -> tuple[int, int]:
    """With descriptors that Chromium's own two cannot be among."""
    made = os.pipe()
    high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in made]
    for one in made:
        os.close(one)
    return high[0], high[1]
