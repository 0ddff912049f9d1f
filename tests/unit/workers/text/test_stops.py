import itertools

from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.text.stops import StopStrings

_letters = st.text(alphabet="ab", max_size=30)
_stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3)


def _run(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, str | None]:
    finder = StopStrings(stops, include_in_output=include)
    given_text = ""
    for piece in pieces:
        text, stop = finder.add(piece)
        given_text += text
        if stop is not None:
            return given_text, stop
    return given_text + finder.flush(), None


def _expected(stops: list[str], text: str, include: bool) -> tuple[str, str | None]:
    """Character by character: the stop that ends first, and of those the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(stops=_stops, text=_letters, cuts=st.lists(st.integers(0, 30)), include=st.booleans())
def test_the_stop_that_ends_first_counts_however_the_text_was_cut(
    stops: list[str], text: str, cuts: list[int], include: bool
) -> None:
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]

    assert _run(stops, pieces, include=include) == _expected(stops, text, include)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    finder = StopStrings(["</answer>"])

    assert finder.add("it is 4 <") == ("it is 4 ", None)
    assert finder.add("5</ans") == ("<5", None)
    assert finder.add("wers") == ("</answers", None)


def test_a_stop_string_that_ends_before_stopping_is_allowed_never_counts() -> None:
    finder = StopStrings(["ab"])

    assert finder.add("xab", may_stop=False) == ("xab", None)
    assert finder.add("a", may_stop=False) == ("", None)
    assert finder.add("b") == ("", "ab")
