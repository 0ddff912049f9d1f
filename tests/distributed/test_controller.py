"""Placement, watching and ending of ranks by a real controller on a real Ray; the ranks have no engine."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from distributed.controlled import Controlled, actors, alive, groups, own_name
from distributed.stand_ins import FailingRank, IdleRank, SlowRank, SpeechlessRank
from patience import NOTICED_S

from outrider.cluster.controller.leftovers import remove_leftovers
from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.scaling.autoscale import AutoscalePolicy
from outrider.proto import cluster_pb2

Start = Callable[..., Controlled]


def assert_only_the_controller_is_left(cluster: Controlled, pids: list[int]) -> None:
    assert alive(pids) == []
    assert actors(cluster.name) == ["controller"]
    assert groups(cluster.name) == []


@pytest.fixture(scope="module")
def idle(ray_address: str) -> Iterator[Controlled]:
    """Two ranks that are ready; the last of its tests drains them."""
    with own_name() as name:
        cluster = Controlled(name, IdleRank)
        cluster.wait_for(Phase.READY)
        yield cluster
        cluster.close()


def test_two_ranks_share_one_bundle_and_their_leader_gets_the_route(idle: Controlled) -> None:
    assert actors(idle.name) == ["controller", "r0:g1:rank0", "r0:g1:rank1"]
    (group,) = groups(idle.name)
    assert len(group["bundles"]) == 1
    assert [route.address for route in next(idle.tables()).routes] == ["127.0.0.1:9"]


def test_status_and_model_are_the_ranks_own_words(idle: Controlled) -> None:
    status = idle.stub.GetStatus(cluster_pb2.GetStatusRequest())
    model = idle.stub.GetModel(cluster_pb2.GetModelRequest())

    (replica,) = status.replicas
    assert (status.name, status.problem, replica.state) == (idle.name, "", "ready")
    assert replica.fingerprint == model.fingerprint == "stand-in"
    assert [(r.rank, r.first_layer, r.end_layer, r.state) for r in replica.ranks] == [
        (0, 0, 7, "ready"),
        (1, 7, 13, "ready"),
    ]
    assert len(alive([rank.pid for rank in replica.ranks])) == 2
    assert (model.name, model.path, model.max_model_len) == ("M", "/models/M", 64)


def test_draining_tells_the_gateways_and_leaves_nothing(idle: Controlled) -> None:
    tables = idle.tables()
    next(tables)
    pids = idle.pids()

    idle.drain()

    assert next(tables).draining
    assert_only_the_controller_is_left(idle, pids)


def test_what_waits_at_gateways_brings_replicas_though_those_there_are_have_nothing_to_do(controlled: Start) -> None:
    cluster = controlled(
        IdleRank,
        autoscale=AutoscalePolicy(
            min_replicas=1, max_replicas=3, target_tokens=100, target_wait_s=5.0, headroom=0.0, cooldown_s=300.0
        ),
    )
    cluster.wait_for(Phase.READY)

    for gateway, tokens in (("a", 150), ("b", 70)):
        cluster.stub.ReportWaiting(cluster_pb2.ReportWaitingRequest(gateway=gateway, tokens=tokens))

    status = cluster.wait_for_status(lambda status: status.desired_replicas == 3)
    assert "220 tokens in flight" in status.last_scaling


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, r"rank 1 \(stage 1, layers 7\.\.12, pid {pid}\) died: its process was killed"),
        pytest.param(
            signal.SIGSTOP,
            r"rank 1 \(stage 1, layers 7\.\.12, pid {pid}\) stopped answering for \d+\.\d s",
            marks=pytest.mark.full,  # serve's tests freeze one too
        ),
    ],
    ids=["killed", "frozen"],
)
def test_a_lost_rank_ends_its_gang_soon_and_is_named(controlled: Start, number: signal.Signals, reason: str) -> None:
    cluster = controlled(IdleRank)
    cluster.wait_for(Phase.READY)
    tables = cluster.tables()
    next(tables)
    pids = cluster.pids()

    os.kill(pids[1], number)
    began = time.monotonic()
    table = next(tables)

    assert time.monotonic() - began < NOTICED_S
    assert list(table.routes) == []
    assert re.match(reason.format(pid=pids[1]), table.ended[0].reason)
    assert table.ended[0].reason in cluster.problem()
    cluster.drain()  # returns when the gang has ended
    assert_only_the_controller_is_left(cluster, pids)


def test_a_rank_that_cannot_load_ends_the_gang_with_its_own_words(controlled: Start) -> None:
    cluster = controlled(FailingRank)

    report = cluster.wait_for(Phase.FAILED)

    assert re.match(r"rank 1 \(stage 1, .*\) failed: checkpoint M is damaged", report.problem)
    pids = cluster.pids()
    cluster.drain()
    assert_only_the_controller_is_left(cluster, pids)


def test_a_rank_whose_probes_fail_ends_the_gang_for_that_reason(controlled: Start) -> None:
    cluster = controlled(SpeechlessRank)
    while 0 in (pids := cluster.pids()):
        time.sleep(0.05)

    ending = cluster.wait_for_status(lambda status: bool(status.replicas[0].last_ending)).replicas[0].last_ending

    words = r"rank 1 \(stage 1, .*, pid \d+\) cannot be probed: .*LookupError: no words$"
    assert re.match(rf"generation 1 ended: {words}", ending)
    cluster.drain()
    assert_only_the_controller_is_left(cluster, pids)


def test_a_rank_that_dies_while_it_loads_is_named(controlled: Start) -> None:
    cluster = controlled(SlowRank)
    while 0 in cluster.pids():
        time.sleep(0.05)

    os.kill(cluster.pids()[0], signal.SIGKILL)

    assert re.match(r"rank 0 \(stage 0, .*\) died: its process was killed", cluster.wait_for(Phase.FAILED).problem)


def test_what_a_killed_run_left_is_found_and_removed_frozen_ranks_too(controlled: Start) -> None:
    cluster = controlled(IdleRank)
    cluster.wait_for(Phase.READY)
    pids = cluster.pids()
    os.kill(pids[0], signal.SIGSTOP)

    found = remove_leftovers(cluster.name)

    assert len(found) == 4  # the controller, two ranks, their group
    assert alive(pids) == []
    assert actors(cluster.name) == []
    assert groups(cluster.name) == []
    assert remove_leftovers(cluster.name) == []
