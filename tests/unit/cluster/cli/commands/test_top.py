"""What `outrider top` makes of two looks at a cluster."""

import queue
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from outrider.cluster.api.errors import UnavailableError
from outrider.cluster.api.status import ClusterStatus, EngineStatus, ReplicaStatus, SpeculationStatus, WorkerStatus
from outrider.cluster.cli.commands.top import History, Newest, Rates, curve, rates, view

ENGINE = EngineStatus(
    running=3, waiting=1, rounds=100, kv_cache_usage=0.25, drafted=300, accepted=200, generated_tokens=300,
    speculation=SpeculationStatus(
        setting="auto", speedup=1.57, price=812.0, budget=4.3, drafted_per_position=(100, 100, 100)
    ),
)  # fmt: skip
RANK = WorkerStatus(
    rank=0, stage=0, first_layer=0, end_layer=12, node="n", pid=1, device="cpu", state="ready", busy=0.8
)
REPLICA = ReplicaStatus(name="r0", generation=2, state="ready", problem="", ranks=(RANK,), engine=ENGINE)
STATUS = ClusterStatus(name="demo", model="scout", version="0", replicas=(REPLICA,), problem="")


def later(rounds: int, drafted: int, accepted: int, tokens: int) -> EngineStatus:
    """Three drafts at a time were verified."""
    per_position = (100 + drafted // 3,) * 3
    return replace(
        ENGINE,
        speculation=replace(ENGINE.speculation, drafted_per_position=per_position),
        rounds=100 + rounds,
        drafted=300 + drafted,
        accepted=200 + accepted,
        generated_tokens=300 + tokens,
    )


def test_rates_are_those_of_the_time_between_the_looks() -> None:
    """Ten sequences verified 3 drafts each, of which two were accepted, and ten had a round without drafts."""
    seen = rates(ENGINE, later(rounds=5, drafted=30, accepted=20, tokens=40), 2.0)

    assert (seen.tokens_per_s, seen.rounds_per_s) == (20.0, 2.5)
    assert (seen.draft_depth, seen.mean_accepted_length) == (1.5, 3.0)
    assert seen.acceptance_rate == pytest.approx(2 / 3)


def test_of_an_idle_replica_nothing_is_told() -> None:
    assert rates(ENGINE, ENGINE, 1.0) == Rates()


def test_counters_that_fell_are_those_of_a_replica_that_began_anew() -> None:
    assert rates(ENGINE, replace(ENGINE, rounds=1, generated_tokens=2), 1.0) == Rates()


def test_a_new_generation_is_not_compared_with_the_old_one() -> None:
    times = iter([0.0, 1.0, 2.0])
    history = History(clock=lambda: next(times))
    history.look(STATUS)
    busy = replace(STATUS, replicas=(replace(REPLICA, engine=later(1, 0, 0, 50)),))
    anew = replace(STATUS, replicas=(replace(REPLICA, generation=3, engine=later(9, 9, 9, 900)),))

    assert history.look(busy)["r0"][0].tokens_per_s == 50
    assert history.look(anew)["r0"] == (Rates(), (0.0,))


def test_the_screen_shows_every_replica_and_what_is_wrong() -> None:
    times = iter([0.0, 2.0])
    history = History(clock=lambda: next(times))
    history.look(STATUS)
    now = replace(STATUS, problem="node n2 is gone", replicas=(replace(REPLICA, engine=later(5, 30, 20, 30)),))
    console = Console(width=200, record=True, force_terminal=False)

    console.print(view(now, history.look(now)))

    text = console.export_text()
    for shown in (
        "demo serves scout",
        "node n2 is gone",
        "r0.2",
        "ready",
        "25%",
        "15",
        "auto",
        "1.57x",
        "draft",
        "acceptance",
        "67%",
        "mean accepted",
        "3.0",
        "812",
        "4.3",
        "80%",
    ):
        assert shown in text, shown


def test_where_rows_are_too_wide_each_replica_is_a_column() -> None:
    replicas = (REPLICA, replace(REPLICA, name="r1"))
    now = replace(STATUS, replicas=replicas)
    console = Console(width=80, record=True, force_terminal=False)

    console.print(view(now, History(clock=lambda: 0.0).look(now)))

    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["replica", "r0.2", "r1.2"] in [[word for word in line if word.isascii()][:3] for line in lines]
    assert ["price", "812", "812"] in [[word for word in line if word.isascii()] for line in lines]


@pytest.mark.parametrize(
    ("speculation", "shown"),
    [
        (SpeculationStatus(setting="auto", disabled_rounds=41), "disabled for 41"),
        (SpeculationStatus(setting="off"), "off"),
    ],
)
def test_speculation_that_is_disabled_or_off_is_shown_as_such(speculation: SpeculationStatus, shown: str) -> None:
    now = replace(STATUS, replicas=(replace(REPLICA, engine=replace(ENGINE, speculation=speculation)),))
    console = Console(width=80, record=True, force_terminal=False)

    console.print(view(now, History(clock=lambda: 0.0).look(now)))

    lines = [[cell.strip() for cell in line.split("│")] for line in console.export_text().splitlines()]
    assert ["speculation", shown] in [line[1:3] for line in lines]


def test_a_curve_is_as_high_as_each_value_beside_the_largest() -> None:
    assert curve([0, 4, 8]) == " ▄█"
    assert curve([0, 0]) == "  "
    assert curve([]) == ""


def test_the_newest_status_is_the_last_that_came_and_stays_while_none_comes() -> None:
    sent: queue.SimpleQueue[ClusterStatus | None] = queue.SimpleQueue()
    newest = Newest(iter(sent.get, None))
    sent.put(STATUS)
    assert newest.get() is newest.get() is STATUS

    for name in ("older", "newer"):
        sent.put(replace(STATUS, name=name))

    names = iter(lambda: newest.get().name, "newer")
    assert set(names) <= {"demo", "older"}
    assert newest.get().name == "newer"


def test_a_stream_of_statuses_that_breaks_ends_the_view_with_its_reason() -> None:
    def broken() -> Iterator[ClusterStatus]:
        yield STATUS
        raise UnavailableError("gone")

    newest = Newest(broken())

    with pytest.raises(UnavailableError, match="gone"):
        list(iter(newest.get, None))
