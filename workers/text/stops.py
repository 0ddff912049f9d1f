"""Finds stop strings in a growing text. Knows nothing of tokens and rounds."""

from collections.abc import Sequence


class StopStrings:
    """Holds back text that may be the beginning of a stop string, so that returned text is final."""

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._include_in_output = include_in_output
        self._held = ""

    def add(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """The text that is now final, and the stop string that `text` completes, if any.

        If several are completed, the one that ends first is used, and among those the longest. With `may_stop` False,
        stop strings that end within `text` are ignored, also later.
        """
        window = self._held + text
        found = self._first_end(window) if may_stop and text else None
        if found is not None:
            start, stop = found
            self._held = ""
            return window[: start + len(stop) if self._include_in_output else start], stop
        undecided = self._undecided(window)
        self._held = window[undecided:]
        return window[:undecided], None

    def flush(self) -> str:
        """Returns the text held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_end(self, window: str) -> tuple[int, str] | None:
        """Start and text of the stop string that ends first, after the held text, which was searched before."""
        ends: list[tuple[int, int, str]] = []
        for stop in self._stops:
            start = window.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0:
                ends.append((start + len(stop), start, stop))
        if not ends:
            return None
        _, start, stop = min(ends)
        return start, stop

    def _undecided(self, window: str) -> int:
        """Start of the longest suffix of `window` that is a prefix of a stop string; len(window) if there is none."""
        for start in range(max(0, len(window) - self._longest + 1), len(window)):
            tail = window[start:]
            if any(len(tail) < len(stop) and stop.startswith(tail) for stop in self._stops):
                return start
        return len(window)
