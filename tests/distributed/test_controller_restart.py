"""A controller whose process is killed comes back, and goes on with the ranks, whose streams have noticed nothing."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from distributed.controlled import Controlled, actors, alive, groups, kill_controller, wait_until_status_works
from distributed.speaking import ENDLESS, Served, Status, expected, ready, states
from distributed.stand_ins import IdleRank, SlowRank, SpeakingRank

from outrider.cluster.controller.leftovers import remove_controller
from outrider.cluster.controller.record import load
from outrider.workers.config import EngineConfig

Start = Callable[..., Controlled]


def two_speaking_replicas(served: Served) -> dict[str, list[int]]:
    """Pids of their ranks, once the gateway sends requests to both."""
    status = served.cluster.wait_for_status(lambda status: ready(status) == {"r0", "r1"}, within_s=60)
    while not all(replica.engine.rounds for replica in status.replicas):
        for stream in [served.stream(number, max_tokens=100) for number in range(2)]:
            stream.rest()
        status = served.cluster.status()
    return rank_pids(status)


def rank_pids(status: Status) -> dict[str, list[int]]:
    return {replica.name: [rank.pid for rank in replica.ranks] for replica in status.replicas}


@pytest.fixture
def served(controlled: Start, model_path: str) -> Iterator[Served]:
    one = Served(controlled(SpeakingRank, model_path=model_path, replicas=2))
    yield one
    one.close()


def test_streams_and_drains_outlive_the_controller_which_goes_on_where_it_was(served: Served) -> None:
    cluster = served.cluster
    before = two_speaking_replicas(served)
    streams = [served.stream(number, max_tokens=ENDLESS) for number in range(4)]
    served.client.drain("r1")
    cluster.wait_for_status(lambda status: states(status) == {"r0": "ready", "r1": "draining"})

    kill_controller(cluster.name)
    wait_until_status_works(served.client)

    status = cluster.wait_for_status(lambda status: all(rank.pid for one in status.replicas for rank in one.ranks))
    assert states(status) == {"r0": "ready", "r1": "draining"}
    assert rank_pids(status) == before
    assert (status.desired_replicas, [one.generation for one in status.replicas]) == (1, [1, 1])
    assert served.stream(7, max_tokens=5).rest() == expected(7, 5)
    assert served.client.scale(2).desired == 2
    for number, stream in enumerate(streams):
        said = stream.cut()
        assert said == expected(number, len(said))
    status = cluster.wait_for_status(lambda status: ready(status) == set(states(status)) == {"r0", "r2"})
    assert rank_pids(status)["r0"] == before["r0"]
    pids = [pid for one in rank_pids(status).values() for pid in one]
    cluster.drain()
    assert (alive(pids), actors(cluster.name), groups(cluster.name)) == ([], ["controller"], [])


@pytest.mark.full
def test_a_rank_that_died_together_with_the_controller_is_named_and_its_stream_goes_on(served: Served) -> None:
    cluster = served.cluster
    before = two_speaking_replicas(served)
    streams = [served.stream(number, max_tokens=ENDLESS) for number in range(2)]

    kill_controller(cluster.name)
    os.kill(before["r1"][1], signal.SIGKILL)
    wait_until_status_works(served.client)

    status = cluster.wait_for_status(lambda status: status.replicas[1].generation == 2)
    assert status.replicas[1].last_ending.startswith("generation 1 ended: rank 1 (stage 1, layers 7..12")
    assert " died: " in status.replicas[1].last_ending
    for number, stream in enumerate(streams):
        said = stream.cut()
        assert said == expected(number, len(said))
    status = cluster.wait_for_status(lambda status: ready(status) == {"r0", "r1"})
    assert rank_pids(status)["r0"] == before["r0"]
    cluster.drain()


@pytest.mark.full
def test_ranks_that_load_go_on_loading_and_what_waits_for_room_waits_again(controlled: Start) -> None:
    loading = controlled(SlowRank)
    while 0 in (pids := loading.pids()) or not load(loading.name).survivors:
        time.sleep(0.05)

    kill_controller(loading.name)
    loading.heartbeat_again()

    assert loading.wait_for_status(lambda status: 0 not in rank_pids(status)["r0"]).replicas[0].generation == 1
    assert loading.pids() == pids
    loading.drain()
    assert (alive(pids), groups(loading.name)) == ([], [])


@pytest.mark.full
def test_a_gang_without_room_asks_for_it_once_after_a_restart_too(controlled: Start) -> None:
    cluster = controlled(IdleRank, engine=EngineConfig(device="cuda"), may_grow=True)
    cluster.wait_for_status(lambda status: states(status) == {"r0": "waiting"})

    kill_controller(cluster.name)
    cluster.heartbeat_again()

    cluster.wait_for_status(lambda status: states(status) == {"r0": "waiting"})
    assert len(groups(cluster.name)) == 1
    cluster.drain()
    assert groups(cluster.name) == []


@pytest.mark.full
def test_another_controller_takes_over_the_ranks_of_one_that_is_gone_for_good(controlled: Start, name: str) -> None:
    first = controlled(IdleRank, replicas=2)
    before = rank_pids(first.wait_for_status(lambda status: ready(status) == {"r0", "r1"}))

    remove_controller(name)
    assert "controller" not in actors(name)
    second = controlled(IdleRank, replicas=2)

    assert second.address == first.address, "where gateways look for it"
    status = second.wait_for_status(lambda status: all(all(pids) for pids in rank_pids(status).values()))
    assert (ready(status), rank_pids(status)) == ({"r0", "r1"}, before)
    second.drain()
    assert groups(name) == []
