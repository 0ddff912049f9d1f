"""What the benchmark of a changing load makes of its runs, and where its prompts come from."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.mixed_load import TRIES, Load
from benchmarks.speculation.mixed_load_figures import (  # fmt: skip
    Cell,
    Turn,
    best_fixed,
    in_order,
    last_over_first,
    row,
    rows,
    rss_growth_mb,
    summary,
    summary_lines,
    table,
)
from benchmarks.speculation.package_prompts import LONGEST, SHORTEST, cut, prompts
from outrider.workers.training.sources import DEBIAN_SOURCES, PYTHON_SOURCES

CELLS = [Cell(*one) for one in itertools.product(("code", "prose"), (0.0, 0.8), (1, 4, 8, 16))]
CODE, PROSE = Cell("code", 0.0, 1), Cell("prose", 0.8, 16)


def turn(
    cell: Cell = CODE,
    cycle: int = 1,
    *,
    ended_s: float = 1.0,
    noisy: Sequence[str] = (),
    identical: bool = True,
    rss_mb: float = 100.0,
    **speeds: float,
) -> Turn:
    """Depths are written as `d1`."""
    by_arm = {arm.removeprefix("d"): speed for arm, speed in speeds.items()}
    return Turn(
        cell=cell, cycle=cycle, ended_s=ended_s, speeds=by_arm, noisy=noisy, identical=identical,
        drafts_per_round=dict.fromkeys(by_arm, 0.0), rss_mb=dict.fromkeys(by_arm, rss_mb),
    )  # fmt: skip


class Engine:
    """Answers like an engine; `others` is what others take of the machine in each of its runs, then 0."""

    def __init__(
        self, name: str, log: list[str], *, seconds: float, others: Sequence[float] = (), token: int = 7
    ) -> None:
        self.name, self.log, self.seconds, self.token = name, log, seconds, token
        self.others = iter(others)

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
        self.log.append(self.name)
        tokens = [[self.token] * request["max_tokens"]]
        answer = {"seconds": self.seconds, "tokens": tokens, "rounds": 5, "drafted": 10, "rss_mb": 100.0}
        return answer, next(self.others, 0.0)


def load(*engines: Engine) -> Load:
    return Load(
        engines={one.name: one for one in engines},
        requests={CODE: {"max_tokens": 12}},
        most_others=0.1,
        passes=2,
        settle_s=0,
    )


@pytest.mark.parametrize("seed", range(5))
def test_batch_and_temperature_change_at_every_step_and_from_the_last_cell_to_the_first(seed: int) -> None:
    order = in_order(CELLS, seed)

    assert sorted(order) == sorted(CELLS)
    for before, after in itertools.pairwise([*order, order[0]]):
        assert before.batch != after.batch
        assert before.temperature != after.temperature


def test_the_seed_alone_decides_the_order() -> None:
    assert in_order(CELLS, 1) == in_order(reversed(CELLS), 1) != in_order(CELLS, 2)


def test_cells_that_cannot_alternate_still_all_run() -> None:
    alike = [Cell("code", 0.0, 1), Cell("code", 0.0, 4), Cell("prose", 0.0, 1)]

    assert sorted(in_order(alike, 1)) == sorted(alike)
    assert in_order([], 1) == []


def test_arms_take_turns_in_an_order_that_rotates_and_then_reverses() -> None:
    log: list[str] = []
    running = load(*(Engine(name, log, seconds=1.0) for name in ("auto", "off", "1")))

    running.turn(CODE, 1, first=0)
    found = running.turn(CODE, 1, first=4)

    assert log == ["auto", "off", "1", "1", "off", "auto", "off", "1", "auto", "auto", "1", "off"]
    assert found.speeds == {"auto": 12.0, "off": 12.0, "1": 12.0}
    assert found.drafts_per_round["auto"] == 2.0


def test_disturbed_runs_are_repeated_and_an_arm_is_noisy_if_none_of_its_tries_was_quiet() -> None:
    log: list[str] = []
    once, always = Engine("auto", log, seconds=1.0, others=[0.5]), Engine("off", log, seconds=1.0, others=[0.5] * 99)

    found = load(once, always).turn(CODE, 1, first=0)

    assert found.noisy == ["off"]
    assert (log.count("auto"), log.count("off")) == (2 + 1, 2 * TRIES)
    assert found.discarded == 1 + 2 * (TRIES - 1)


def test_tokens_must_be_those_of_the_first_cycle_in_every_arm() -> None:
    log: list[str] = []
    same, other = Engine("auto", log, seconds=1.0), Engine("off", log, seconds=1.0, token=8)
    running = load(same)

    assert not load(same, other).turn(CODE, 1, first=0).identical
    assert running.turn(CODE, 1, first=0).identical
    same.token = 8
    assert not running.turn(CODE, 2, first=0).identical


def test_cycles_or_minutes_end_the_load_but_never_the_first_cycle() -> None:
    running = load(Engine("auto", [], seconds=1.0))

    assert [one.cycle for one in running.turns([CODE], cycles=3, minutes=0)] == [1, 2, 3]
    assert [one.cycle for one in running.turns([CODE, CODE], cycles=3, minutes=1e-9)] == [1, 1]


def test_the_best_fixed_depth_has_the_highest_median_over_cycles_and_neither_off_nor_auto_counts() -> None:
    """Depth 3 is ahead in one lucky cycle; the machine is at half its speed in the last one."""
    turns = [
        turn(cycle=1, auto=900.0, off=100.0, d1=120.0, d3=110.0),
        turn(cycle=2, auto=900.0, off=100.0, d1=120.0, d3=300.0),
        turn(cycle=3, auto=450.0, off=50.0, d1=60.0, d3=55.0),
    ]

    assert best_fixed(turns) == "1"
    assert best_fixed([turn(auto=300.0, off=200.0, d1=150.0)]) == "1"
    assert best_fixed([turn(auto=100.0, off=100.0)]) is None


def test_ratios_compare_arms_of_the_same_turn_and_show_decay_by_cycle() -> None:
    found = row([
        turn(cycle=1, auto=150.0, off=100.0, d2=120.0),
        turn(cycle=2, auto=60.0, off=60.0, d2=72.0),
        turn(cycle=3, auto=90.0, off=100.0, d2=120.0),
    ])  # fmt: skip

    assert [cycle["auto_over_off"] for cycle in found["cycles"]] == pytest.approx([1.5, 1.0, 0.9])
    assert [cycle["auto_over_best_fixed"] for cycle in found["cycles"]] == pytest.approx([1.25, 60 / 72, 0.75])
    assert found["cycles"][0]["over_off"] == pytest.approx({"auto": 1.5, "off": 1.0, "2": 1.2})
    assert found["decay"] == pytest.approx(0.6)
    assert found["off_tokens_per_second"] == 100.0
    assert row([turn(auto=1.0, off=1.0)])["decay"] is None


def test_only_ratios_of_disturbed_arms_are_noisy() -> None:
    found = row([turn(cycle=1, auto=1.0, off=1.0, d2=2.0, noisy=["2"]), turn(cycle=2, auto=1.0, off=1.0, d2=2.0)])
    disturbed, quiet = found["cycles"]

    assert (disturbed["auto_over_off_noisy"], disturbed["auto_over_best_fixed_noisy"]) == (False, True)
    assert (quiet["auto_over_off_noisy"], quiet["auto_over_best_fixed_noisy"]) == (False, False)
    assert not found["decay_noisy"]
    assert row([turn(auto=1.0, off=1.0, noisy=["off"]), turn(cycle=2, auto=1.0, off=1.0)])["decay_noisy"]


def test_the_summary_names_the_worst_cell_and_leaves_disturbed_ratios_out_unless_asked() -> None:
    found = rows([
        turn(CODE, 1, auto=110.0, off=100.0, d1=100.0),
        turn(PROSE, 1, auto=95.0, off=100.0, d1=100.0),
        turn(CODE, 2, auto=120.0, off=100.0, d1=100.0),
        turn(PROSE, 2, auto=20.0, off=100.0, d1=100.0, noisy=["auto"]),
    ])  # fmt: skip
    quiet, every = summary(found, with_noisy=False), summary(found, with_noisy=True)

    assert quiet["auto_over_off"] == pytest.approx(
        {"ratios": 3, "worst": 0.95, "worst_cell": "prose:0.8:16", "worst_cycle": 1, "median": 1.1}
    )
    assert (every["auto_over_off"]["worst"], every["auto_over_off"]["worst_cycle"]) == (0.2, 2)
    assert (quiet["decay"]["worst_cell"], every["decay"]["worst_cell"]) == ("code:0:1", "prose:0.8:16")
    assert summary_lines(quiet, "ratios")[0] == "auto/off, 3 ratios: worst 0.95 (prose:0.8:16, cycle 1), median 1.10"


def test_without_fixed_depths_or_undisturbed_runs_there_is_no_figure() -> None:
    found = rows([turn(auto=1.0, off=1.0, noisy=["auto", "off"])])
    nothing = summary(found, with_noisy=False)

    assert nothing["auto_over_off"]["worst"] is None
    assert summary(found, with_noisy=True)["auto_over_best_fixed"]["median"] is None
    assert summary_lines(nothing, "ratios") == []


def test_the_table_marks_disturbed_ratios_cells_cut_short_and_tokens_that_differ() -> None:
    found = rows([
        turn(CODE, 1, auto=110.0, off=100.0, d1=100.0, noisy=["auto"]),
        turn(PROSE, 1, auto=95.0, off=100.0, d1=100.0, identical=False),
        turn(CODE, 2, auto=120.0, off=100.0, d1=100.0),
    ])  # fmt: skip
    code, prose = table(found).splitlines()[2:]

    assert code.split() == ["code:0:1", "100", "1.10*", "1.20", "1.10*", "1.20", "1", "1.09*"]
    assert prose.split() == ["prose:0.8:16", "100", "0.95", "-", "0.95", "-", "1", "-", "TOKENS", "DIFFER"]


def test_of_many_cycles_the_table_shows_the_first_and_the_last_and_some_between() -> None:
    found = rows([turn(cycle=cycle, auto=float(cycle), off=1.0) for cycle in range(1, 102)])

    shown = table(found).splitlines()[2].split()[2:8]

    assert shown == ["1.00", "21.00", "41.00", "61.00", "81.00", "101.00"]


def test_a_soak_compares_the_same_cells_in_its_first_and_last_minute() -> None:
    turns = [
        turn(CODE, 1, ended_s=20.0, auto=100.0, off=100.0, rss_mb=300.0),
        turn(PROSE, 1, ended_s=40.0, auto=1000.0, off=100.0, rss_mb=400.0),
        turn(CODE, 2, ended_s=101.0, auto=1.0, off=100.0),
        turn(CODE, 3, ended_s=155.0, auto=80.0, off=100.0),
        turn(PROSE, 3, ended_s=160.0, auto=1.0, off=100.0, noisy=["auto"], rss_mb=407.0),
    ]

    assert last_over_first(turns, "auto") == pytest.approx(40.5 / 100)
    assert last_over_first(turns, "off") == 1.0
    assert last_over_first(turns[:2], "auto") is None
    assert rss_growth_mb(turns) == {"auto": 7.0, "off": 7.0}


def test_where_a_cycle_takes_longer_than_a_minute_its_time_is_compared() -> None:
    cells = [turn(CODE, ended_s=90.0, auto=100.0, off=1.0), turn(PROSE, ended_s=180.0, auto=100.0, off=1.0)]
    later = [turn(CODE, 2, ended_s=270.0, auto=50.0, off=1.0), turn(PROSE, 2, ended_s=360.0, auto=50.0, off=1.0)]

    assert last_over_first(cells + later, "auto") == 0.5


def test_a_prompt_starts_with_a_definition_and_is_as_long_as_its_files_name_decides() -> None:
    def encode(text: str) -> list[int]:
        return [ord(character) for character in text]

    text = "x = 1\n\n\ndef first():\n" + "    return 1\n" * 60
    lengths = set()
    for number in range(20):
        prompt = cut("code", f"module_{number}.py", text, encode)
        assert prompt is not None
        assert bytes(prompt).startswith(b"def first():")
        lengths.add(len(prompt))

    assert len(lengths) > 10
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert cut("code", "a.py", "x = 1\n", encode) is None
    assert cut("code", "a.py", "def short(): ...", encode) is None


def test_prompts_are_the_same_every_time_and_from_packages_that_scout_was_not_trained_on() -> None:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    assert prompts("prose", 3, encode) == prompts("prose", 3, encode)
    assert len(set(map(tuple, prompts("code", 5, encode)))) == 5
    assert not {"numpy", "torch"} & {source.package for source in (*PYTHON_SOURCES, *DEBIAN_SOURCES)}
