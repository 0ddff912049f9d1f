"""Untrusted grammars are compiled in processes of their own: what crashes or fills one is refused, and harms nobody."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import psutil
import pytest
from patience import AT_ONCE_S

from outrider.workers.config import resolve_model
from outrider.workers.text.grammar_check import MOST_WAITING, PROCESSES, GrammarChecker
from outrider.workers.types.errors import OverloadedError
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

DEEP = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(3999)) + '\nr3999: "a"'
WIDE = (
    "start: "
    + " ".join(f"r{n}" for n in range(3000))
    + "\n"
    + "\n".join(f'r{n}: "a{n}" | "b" r{(n + 1) % 3000}' for n in range(3000))
)


def costly(number: int) -> StructuredOutputsParams:
    """Validates in a millisecond, and compiles for ever. Of each number another."""
    patterns = " & ".join(f"/(.*a.{{{n}}}.*)/" for n in range(3, 30))
    return StructuredOutputsParams(grammar=f"start: T\nT: {patterns}\n//{number}")


@pytest.fixture
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker(resolve_model("scout") / "tokenizer.json")
    yield checker
    checker.close()


def every_child() -> list[psutil.Process]:
    running = psutil.Process().children()
    return [one for one in running if "outrider.workers.text.grammar_process" in " ".join(one.cmdline())]


OTHERS = list[psutil.Process]()  # of a gateway that other tests share


@pytest.fixture(autouse=True)
def _others() -> None:
    OTHERS[:] = every_child()


def children() -> list[psutil.Process]:
    """Of this test."""
    return [one for one in every_child() if one not in OTHERS]


@pytest.mark.parametrize(
    "given",
    [
        {"json": "{"},
        {"json": "[1]"},
        {"json": {"type": "nonsense"}},
        {"json": {"type": "array", "uniqueItems": True}},
        {"regex": "("},
        {"regex": "(?=a)b"},
        {"grammar": "start: nowhere"},
        {"grammar": "start: /(/"},
        {"grammar": DEEP},
        {"grammar": WIDE},
        {"json": "[" * 30_000 + "]" * 30_000},
        {"grammar": costly(0).grammar},
    ],
    ids=lambda given: str(given)[:40],
)
def test_what_cannot_be_followed_is_refused_in_one_line(checker: GrammarChecker, given: dict[str, Any]) -> None:
    for _ in range(2):  # the second time from memory
        with pytest.raises(ValueError, match=r"^structured_outputs ") as caught:
            checker.check(StructuredOutputsParams(**given))

        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    checker.check(StructuredOutputsParams(regex="[a-z]+"))


@pytest.mark.parametrize(
    "given",
    [
        {"json": {"type": "object", "properties": {f"p{n}": {"type": ["string", "null"]} for n in range(300)}}},
        {"json": {"enum": [f"value number {n} of many" for n in range(1000)]}},
        {"json": {"type": "array", "items": {"type": "string", "maxLength": 4000}, "maxItems": 500}},
        {"regex": r"[a-c]{1,4}-\d{2}(x|yy)?"},
        {"choice": [f"text of choice {n} " + "x" * (n % 40) for n in range(1024)]},
        {"grammar": 'start: item ("," item)~1..2\nitem: /[0-9]+/ | "(" item ")"'},
        {"json_object": True},
    ],
    ids=lambda given: str(given)[:40],
)
def test_what_can_be_followed_is_not_refused(checker: GrammarChecker, given: dict[str, Any]) -> None:
    checker.check(StructuredOutputsParams(**given))


def test_what_takes_too_long_is_refused_and_says_so() -> None:
    checker = GrammarChecker(resolve_model("scout") / "tokenizer.json", cpu_s=0.05)

    with pytest.raises(ValueError, match="takes too long"):
        checker.check(costly(0))

    checker.check(StructuredOutputsParams(regex="[a-z]+"))
    checker.close()


def test_good_grammars_are_checked_by_processes_that_stay(checker: GrammarChecker) -> None:
    seen = set()
    for n in range(20):
        checker.check(StructuredOutputsParams(regex=f"a{n}"))
        seen |= {one.pid for one in children()}

    assert 1 <= len(seen) <= PROCESSES


def test_a_cancelled_check_ends_its_process_and_the_next_is_made() -> None:
    checker = GrammarChecker(resolve_model("scout") / "tokenizer.json", cpu_s=600)
    checker.check(StructuredOutputsParams(regex="a"))
    (process,) = children()
    work, before = checker.submit(costly(1)), process.cpu_times().user
    while process.cpu_times().user < before + 0.05:  # it is at work
        time.sleep(0.01)

    assert work.cancel()

    psutil.wait_procs([process], AT_ONCE_S)
    assert not process.is_running()
    with pytest.raises(CancelledError):
        work.result()
    checker.check(StructuredOutputsParams(regex="b"))
    checker.close()


def test_where_requests_were_accepted_before_none_is_refused_for_how_many_they_are() -> None:
    """As those of a replica that was lost, which all come to another at once."""
    checker = GrammarChecker(resolve_model("scout") / "tokenizer.json", most_waiting=None)

    checks = [checker.submit(StructuredOutputsParams(regex=f"a{n % 20}")) for n in range(3 * MOST_WAITING)]

    assert [check.result() for check in checks] == [None] * len(checks)
    checker.close()


def test_too_many_that_wait_are_refused_for_now(checker: GrammarChecker) -> None:
    waiting = [checker.submit(costly(n)) for n in range(MOST_WAITING)]

    with pytest.raises(OverloadedError):
        checker.check(StructuredOutputsParams(regex="a"))

    for one in waiting:
        one.cancel()
    with_room = threading.Event()
    while not with_room.is_set():
        try:
            checker.check(StructuredOutputsParams(regex="a"))
            with_room.set()
        except OverloadedError:
            os.sched_yield()


def test_without_a_tokenizer_a_check_fails_and_is_not_the_requests_fault(tmp_path: Path) -> None:
    with pytest.raises(OverloadedError, match="cannot be checked"):
        GrammarChecker(tmp_path / "tokenizer.json").check(StructuredOutputsParams(regex="a"))


def test_closing_leaves_no_process(checker: GrammarChecker) -> None:
    checker.check(StructuredOutputsParams(regex="a"))
    running = children()

    checker.close()

    psutil.wait_procs(running, AT_ONCE_S)
    assert running
    assert not children()
