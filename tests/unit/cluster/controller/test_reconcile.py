from dataclasses import replace

import pytest

from outrider.cluster.api.endings import is_hang
from outrider.cluster.controller.controller import TICK_S
from outrider.cluster.controller.reconcile import (
    Action,
    Deadlines,
    DrainProgress,
    End,
    Goal,
    ObservedRank,
    Phase,
    Publish,
    Retire,
    Start,
    Stop,
    fault,
    reconcile,
    retry_delay_s,
)
from outrider.cluster.controller.replicas.replica import PROBE_EVERY_S
from outrider.workers.serving import local
from outrider.workers.serving.rank_status import STATUS_EVERY_S

DEADLINES = Deadlines(starting_s=100, loading_s=30, ready_s=6)
NOW = 1000.0


def a_rank(rank: int, state: str = "ready") -> ObservedRank:
    """One that answered the probe sent half a second ago."""
    return ObservedRank(rank=rank, label=f"rank {rank}", state=state, answered_at=NOW - 0.5)


def decide(
    *ranks: ObservedRank,
    phase: Phase = Phase.READY,
    goal: Goal = Goal.SERVE,
    problem: str = "",
    drain: DrainProgress | None = None,
    retry_at: float | None = None,
) -> list[Action]:
    return reconcile(
        goal=goal,
        phase=phase,
        problem=problem,
        ranks=ranks,
        now=NOW,
        deadlines=DEADLINES,
        drain=drain,
        retry_at=retry_at,
    )


def test_a_replica_that_is_wanted_and_absent_is_started() -> None:
    assert decide(phase=Phase.ABSENT) == [Start()]


def test_a_replica_is_published_once_its_last_rank_is_ready() -> None:
    assert decide(a_rank(0), a_rank(1, "loading"), phase=Phase.STARTING) == []
    assert decide(a_rank(0), a_rank(1), phase=Phase.STARTING) == [Publish()]


def test_a_healthy_replica_is_left_alone() -> None:
    assert decide(a_rank(0), a_rank(1)) == []


def test_a_replica_without_ranks_yet_is_not_published() -> None:
    assert decide(phase=Phase.STARTING) == []


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.READY, Phase.DRAINING])
def test_a_replica_that_is_not_wanted_any_more_is_stopped(phase: Phase) -> None:
    assert decide(a_rank(0), phase=phase, goal=Goal.STOP) == [Stop()]


@pytest.mark.parametrize("goal", [Goal.STOP, Goal.DRAIN])
@pytest.mark.parametrize("phase", [Phase.ABSENT, Phase.FAILED])
def test_there_is_nothing_to_stop_in_a_replica_that_has_no_gang(phase: Phase, goal: Goal) -> None:
    assert decide(a_rank(0), phase=phase, goal=goal, retry_at=NOW) == []


def test_a_failed_replica_gets_its_next_generation_when_its_time_has_come_and_not_before() -> None:
    failed = replace(a_rank(0), death="it was killed")

    assert decide(failed, phase=Phase.FAILED) == []
    assert decide(failed, phase=Phase.FAILED, retry_at=NOW + 0.1) == []
    assert decide(failed, phase=Phase.FAILED, retry_at=NOW) == [Start()]


def test_generations_that_fail_one_after_another_come_ever_more_slowly() -> None:
    delays = [retry_delay_s(failures) for failures in range(1, 12)]

    assert delays[:3] == [1.0, 2.0, 4.0]
    assert delays == sorted(delays)
    assert delays[-1] == 60.0


def test_a_replica_that_drains_is_retired_then_stopped_once_it_is_idle() -> None:
    assert decide(a_rank(0), goal=Goal.DRAIN) == [Retire()]
    assert decide(a_rank(0), goal=Goal.DRAIN, phase=Phase.DRAINING, drain=DrainProgress()) == []
    assert decide(a_rank(0), goal=Goal.DRAIN, phase=Phase.DRAINING, drain=DrainProgress(idle=True)) == [Stop()]


def test_a_drain_that_takes_too_long_sends_the_requests_elsewhere() -> None:
    (stop,) = decide(a_rank(0), goal=Goal.DRAIN, phase=Phase.DRAINING, drain=DrainProgress(overdue=True))

    assert isinstance(stop, Stop)
    assert "drained" in stop.reason


def test_a_replica_that_loads_need_not_be_waited_for_to_leave() -> None:
    assert decide(a_rank(0, "loading"), goal=Goal.DRAIN, phase=Phase.STARTING) == [Stop()]


def test_a_rank_that_dies_while_its_replica_drains_is_still_noticed() -> None:
    dead = replace(a_rank(0), death="it was killed")

    assert decide(dead, goal=Goal.DRAIN, phase=Phase.DRAINING) == [End("rank 0 died: it was killed")]


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.READY])
def test_a_dead_rank_ends_the_gang_and_is_named(phase: Phase) -> None:
    dead = replace(a_rank(1), death="its process was killed")

    assert decide(a_rank(0), dead, phase=phase) == [End("rank 1 died: its process was killed")]


def test_a_gang_that_could_not_be_brought_up_ends_with_that_reason() -> None:
    assert decide(phase=Phase.STARTING, problem="no room") == [End("no room")]


def test_a_rank_that_died_is_a_better_reason_than_that_the_gang_could_not_be_brought_up() -> None:
    dead = replace(a_rank(0), death="its process was killed")

    assert decide(dead, phase=Phase.STARTING, problem="cannot reach rank 0") == [
        End("rank 0 died: its process was killed")
    ]


def test_silence_ends_the_gang_when_the_deadline_has_passed_and_not_before() -> None:
    silent = replace(a_rank(1), waiting_since=NOW - 5.9)

    assert fault([a_rank(0), silent], NOW, DEADLINES) == ""
    assert fault([a_rank(0), silent], NOW + 0.2, DEADLINES) == "rank 1 stopped answering for 6.1 s"


def test_silence_counts_from_the_first_probe_without_an_answer_however_many_follow() -> None:
    silent = a_rank(1).probed(NOW - 6.1).probed(NOW - 3)

    assert fault([a_rank(0), silent], NOW, DEADLINES) == "rank 1 stopped answering for 6.1 s"


@pytest.mark.parametrize(("state", "deadline"), [("loading", 30), ("ready", 6), ("failed", 6)])
def test_a_rank_that_loads_may_be_silent_for_longer(state: str, deadline: float) -> None:
    silent = replace(a_rank(0, state), waiting_since=NOW - deadline)

    assert fault([silent], NOW - 0.1, DEADLINES) == ""
    assert "stopped answering" in fault([silent], NOW + 0.1, DEADLINES)


def test_a_rank_that_never_answered_has_the_time_that_a_process_needs_to_start() -> None:
    unheard = ObservedRank(rank=0, label="rank 0", waiting_since=NOW - 99)

    assert fault([unheard], NOW, DEADLINES) == ""
    assert fault([unheard], NOW + 2, DEADLINES) == "rank 0 did not start within 101.0 s"


def test_a_rank_that_fails_alone_is_believed() -> None:
    failed = replace(a_rank(0, "failed"), error="weights are damaged", failed_at=NOW - 1)

    assert fault([failed], NOW, DEADLINES) == "rank 0 failed: weights are damaged"


def test_the_word_of_a_rank_that_lost_its_peer_waits_until_the_peer_has_answered() -> None:
    failed = replace(a_rank(0, "failed"), error="rank 1 is gone", failed_at=NOW - 1)
    frozen = replace(a_rank(1), answered_at=NOW - 2, waiting_since=NOW - 1.5)

    assert fault([failed, frozen], NOW, DEADLINES) == ""
    assert fault([failed, frozen], NOW + 5, DEADLINES).startswith("rank 1 stopped answering")
    assert fault([failed, replace(frozen, answered_at=NOW)], NOW, DEADLINES) == "rank 0 failed: rank 1 is gone"


def test_a_death_explains_the_silence_and_the_failures_of_others() -> None:
    failed = replace(a_rank(0, "failed"), error="rank 2 is gone", failed_at=NOW - 1)
    silent = replace(a_rank(1), waiting_since=NOW - 50)
    dead = replace(a_rank(2), death="its process was killed")

    assert fault([failed, silent, dead], NOW, DEADLINES) == "rank 2 died: its process was killed"


def test_a_frozen_rank_is_noticed_within_ten_seconds_whoever_watches_it() -> None:
    a_probe, a_look = PROBE_EVERY_S, TICK_S
    assert a_probe + Deadlines().ready_s + a_look < 10
    assert STATUS_EVERY_S + local.SILENCE_S + local.WATCH_EVERY_S < 10


def test_a_rank_that_answers_and_makes_no_progress_ends_the_gang() -> None:
    stuck = replace(a_rank(0), stall="no progress for 12.0 s in round 7 of 4 rows")

    (action,) = decide(stuck, a_rank(1))

    assert action == End("rank 0 hangs: no progress for 12.0 s in round 7 of 4 rows")


def test_of_ranks_that_answer_the_one_that_computes_is_what_hangs() -> None:
    leader, follower = replace(a_rank(0), stall="no progress"), replace(a_rank(1), computing_s=12.0)

    assert fault([leader, follower], NOW, DEADLINES) == "rank 1 hangs: no progress"
    in_its_own_part = [replace(leader, computing_s=12.0), replace(follower, computing_s=0.01)]
    assert fault(in_its_own_part, NOW, DEADLINES) == "rank 0 hangs: no progress"
    in_an_exchange = [replace(leader, computing_s=12.0), replace(follower, computing_s=11.9)]
    assert fault(in_an_exchange, NOW, DEADLINES) == "rank 0 and rank 1 hang: no progress"


def test_an_ending_by_a_hang_is_told_from_others_by_its_reason() -> None:
    stuck, other = replace(a_rank(0), stall="no progress", computing_s=12.0), replace(a_rank(1), computing_s=11.9)

    assert is_hang(fault([stuck], NOW, DEADLINES))
    assert is_hang(fault([stuck, other], NOW, DEADLINES))
    assert not is_hang(fault([replace(stuck, death="its process died")], NOW, DEADLINES))


def test_a_dead_or_silent_rank_explains_a_rank_that_hangs() -> None:
    stuck = replace(a_rank(0), stall="no progress")

    assert "rank 1 died" in fault([stuck, replace(a_rank(1), death="killed")], NOW, DEADLINES)
    silent = replace(a_rank(1), waiting_since=NOW - 7)
    assert "rank 1 stopped answering" in fault([stuck, silent], NOW, DEADLINES)
