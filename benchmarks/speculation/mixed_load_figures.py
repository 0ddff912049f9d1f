"""The order of cells, and what the turns of benchmarks/mixed_load.py add up to. Pure."""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.common.repeats import paired

LABELS = {"auto_over_off": "auto/off", "auto_over_best_fixed": "auto/best fixed", "decay": "decay"}
MOST_COLUMNS = 6  # cycles that the table shows
Ratio = tuple[float, bool]  # and whether one of its two runs was disturbed


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A kind of text, how it is sampled, and how many requests run at once."""

    kind: str
    temperature: float
    batch: int

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.temperature:g}:{self.batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One cell that every arm ran once, in the same minute."""

    cell: Cell
    cycle: int  # from 1
    ended_s: float  # since the first turn began
    speeds: dict[str, float]  # tokens a second, by arm
    noisy: Collection[str] = ()  # arms that others disturbed in every try
    discarded: int = 0  # disturbed runs that were repeated
    identical: bool = True  # every arm's tokens are those of the first arm in the first cycle
    drafts_per_round: dict[str, float]  # of one sequence
    rss_mb: dict[str, float]

    def over(self, arm: str, reference: str) -> Ratio:
        return self.speeds[arm] / self.speeds[reference], arm in self.noisy or reference in self.noisy


def in_order(cells: Iterable[Cell], seed: int, tries: int = 300) -> list[Cell]:
    """Shuffled so that batch and temperature change from each cell to the next, the last to the first included.

    Where the cells do not allow that, as many change as the best of `tries` shuffles reached.
    """
    rng, cells = random.Random(seed), sorted(cells)
    orders = [_shuffled(cells, rng) for _ in range(tries)]
    return max(orders, key=lambda order: sum(map(_changes, order, order[1:] + order[:1])))


def _shuffled(cells: Sequence[Cell], rng: random.Random) -> list[Cell]:
    left = rng.sample(cells, len(cells))
    order, left = left[:1], left[1:]
    while left:
        order.append(max(left, key=lambda cell: _changes(order[-1], cell)))
        left.remove(order[-1])
    return order


def _changes(before: Cell, after: Cell) -> int:
    return (before.batch != after.batch) + (before.temperature != after.temperature)


def best_fixed(turns: Sequence[Turn]) -> str | None:
    """The fixed depth with the highest median over the cycles of one cell, of its speed over off in the same turn."""
    speeds = {arm: [turn.speeds[arm] for turn in turns] for arm in turns[0].speeds if arm == "off" or arm.isdigit()}
    over_off = paired(speeds, "off")
    del over_off["off"]
    return max(over_off, key=over_off.__getitem__, default=None)


def row(turns: Sequence[Turn]) -> dict[str, Any]:
    """The figures of one cell, cycle by cycle. Decay is auto over off in the last cycle over the first."""
    best = best_fixed(turns)
    (first, first_noisy), (last, last_noisy) = (turn.over("auto", "off") for turn in (turns[0], turns[-1]))
    return {
        "cell": turns[0].cell.name,
        "best_fixed": best,
        "off_tokens_per_second": median(turn.speeds["off"] for turn in turns),
        "decay": last / first if len(turns) > 1 else None,
        "decay_noisy": first_noisy or last_noisy,
        "identical": all(turn.identical for turn in turns),
        "cycles": [_cycle(turn, best) for turn in turns],
    }


def _cycle(turn: Turn, best: str | None) -> dict[str, Any]:
    over_off = {arm: turn.over(arm, "off") for arm in turn.speeds}
    over_best = turn.over("auto", best) if best is not None else None
    return {
        "cycle": turn.cycle,
        "ended_s": turn.ended_s,
        "tokens_per_second": turn.speeds,
        "auto_over_off": over_off["auto"][0],
        "auto_over_off_noisy": over_off["auto"][1],
        "auto_over_best_fixed": over_best[0] if over_best else None,
        "auto_over_best_fixed_noisy": over_best[1] if over_best else None,
        "over_off": {arm: ratio for arm, (ratio, _) in over_off.items()},
        "drafts_per_round": turn.drafts_per_round,
        "noisy_arms": sorted(turn.noisy),
        "discarded_runs": turn.discarded,
        "identical": turn.identical,
    }


def rows(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """One for each cell, in the order in which they ran."""
    by_cell: dict[Cell, list[Turn]] = {}
    for turn in turns:
        by_cell.setdefault(turn.cell, []).append(turn)
    return [row(own) for own in by_cell.values()]


def summary(found: Sequence[dict[str, Any]], *, with_noisy: bool) -> dict[str, dict[str, Any]]:
    """By kind of ratio, over all cells and cycles; None where there is no ratio."""
    cycles = [{"cell": one["cell"], **cycle} for one in found for cycle in one["cycles"]]
    decays = [{"cycle": one["cycles"][-1]["cycle"], **one} for one in found]
    return {
        "auto_over_off": _worst_and_median("auto_over_off", cycles, with_noisy),
        "auto_over_best_fixed": _worst_and_median("auto_over_best_fixed", cycles, with_noisy),
        "decay": _worst_and_median("decay", decays, with_noisy),
    }


def _worst_and_median(name: str, every: Iterable[dict[str, Any]], with_noisy: bool) -> dict[str, Any]:
    known = [one for one in every if one[name] is not None and (with_noisy or not one[f"{name}_noisy"])]
    worst = min(known, key=lambda one: float(one[name]), default={name: None, "cell": None, "cycle": None})
    return {
        "ratios": len(known),
        "worst": worst[name],
        "worst_cell": worst["cell"],
        "worst_cycle": worst["cycle"],
        "median": median(one[name] for one in known) if known else None,
    }


def summary_lines(figures: dict[str, dict[str, Any]], which: str) -> list[str]:
    return [
        f"{LABELS[name]}, {one['ratios']} {which}: worst {one['worst']:.2f} ({one['worst_cell']}, cycle "
        f"{one['worst_cycle']}), median {one['median']:.2f}"
        for name, one in figures.items()
        if one["ratios"]
    ]


def last_over_first(turns: Sequence[Turn], arm: str) -> float | None:
    """An arm's tokens a second in the last minute over the first: the median over the cells that both contain.

    Where a cycle takes more than a minute, its time takes the minute's place. None if no cell ran undisturbed in both.
    """
    window = max(60.0, *(turn.ended_s for turn in turns if turn.cycle == 1))
    first = _mean_speeds(turns, arm, lambda turn: turn.ended_s <= window)
    last = _mean_speeds(turns, arm, lambda turn: turn.ended_s > max(window, turns[-1].ended_s - window))
    both = first.keys() & last.keys()
    return median(last[cell] / first[cell] for cell in both) if both else None


def _mean_speeds(turns: Sequence[Turn], arm: str, chosen: Callable[[Turn], bool]) -> dict[Cell, float]:
    speeds: dict[Cell, list[float]] = {}
    for turn in filter(chosen, turns):
        if arm not in turn.noisy:
            speeds.setdefault(turn.cell, []).append(turn.speeds[arm])
    return {cell: sum(own) / len(own) for cell, own in speeds.items()}


def rss_growth_mb(turns: Sequence[Turn]) -> dict[str, float]:
    """By arm, from the end of the first cycle to the end."""
    settled = [turn for turn in turns if turn.cycle == 1][-1]
    return {arm: turns[-1].rss_mb[arm] - settled.rss_mb[arm] for arm in settled.rss_mb}


def table(found: Sequence[dict[str, Any]]) -> str:
    """A row for each cell; of many cycles only some, evenly chosen, the first and the last among them."""
    cycles = _shown(max(len(one["cycles"]) for one in found))
    wide = 8 * len(cycles)
    numbers = "".join(f"{cycle:>7} " for cycle in cycles)
    lines = [
        f"{'':<16}{'off':>10}  {'auto/off in':<{wide}}  {'auto/best in':<{wide}}  {'best':>5}",
        f"{'cell':<16}{'tokens/s':>10}  {'cycle' + numbers[5:]}  {'cycle' + numbers[5:]}  {'fixed':>5}{'decay':>7}",
    ]
    return "\n".join(lines + [_line(one, cycles) for one in found])


def _shown(count: int) -> list[int]:
    columns = min(count, MOST_COLUMNS)
    return sorted({1 + round(at * (count - 1) / max(1, columns - 1)) for at in range(columns)})


def _line(one: dict[str, Any], cycles: Sequence[int]) -> str:
    by_cycle = {cycle["cycle"]: cycle for cycle in one["cycles"]}
    over_off, over_best = (
        "".join(_ratio(by_cycle.get(number, {}), name) for number in cycles)
        for name in ("auto_over_off", "auto_over_best_fixed")
    )
    speed, best, decay = f"{one['off_tokens_per_second']:.0f}", one["best_fixed"] or "-", _ratio(one, "decay")
    different = "" if one["identical"] else "TOKENS DIFFER"
    return f"{one['cell']:<16}{speed:>10}  {over_off}  {over_best}  {best:>5}{decay}{different}".rstrip()


def _ratio(figures: dict[str, Any], name: str) -> str:
    """Eight characters."""
    if figures.get(name) is None:
        return f"{'-':>7} "
    return f"{figures[name]:>7.2f}{'*' if figures[f'{name}_noisy'] else ' '}"
