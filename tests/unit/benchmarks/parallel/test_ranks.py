"""A benchmark's ranks: all at once, and none left behind."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.parallel.ranks import environment, printed_by

MEETING = """
import sys, time, outrider, benchmarks.common.results
from pathlib import Path
here, rank = Path(sys.argv[1]), int(sys.argv[2])
(here / str(rank)).touch()
while len(list(here.iterdir())) < 3:
    time.sleep(0.01)
print(rank)
"""
SLEEPING = """
import os, sys, time
from pathlib import Path
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""


def test_ranks_run_at_once_and_find_outrider_and_the_benchmarks(tmp_path: Path) -> None:
    """Each waits for all others."""
    commands = [[sys.executable, "-c", MEETING, str(tmp_path), str(rank)] for rank in range(3)]

    assert printed_by(commands, environment(), 60.0) == ["0\n", "1\n", "2\n"]


def test_a_rank_has_what_it_was_given_and_one_thread() -> None:
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['LINK'])"

    assert printed_by([[sys.executable, "-c", code]], environment(LINK="a0"), 60.0) == ["1 a0\n"]


def test_ranks_that_are_late_are_ended(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        printed_by([[sys.executable, "-c", SLEEPING, str(tmp_path / "pid")]], environment(), 3.0)

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_none_is_left_where_one_cannot_be_started(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", SLEEPING, str(tmp_path / "pid")], [str(tmp_path / "no program")]]
    before = children()

    with pytest.raises(FileNotFoundError):
        printed_by(commands, environment(), 60.0)

    assert children() == before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}
