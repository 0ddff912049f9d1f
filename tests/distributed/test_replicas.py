"""Several replicas under a real controller on a real Ray, with a real gateway: scale, drain, ends of generations."""

import os
import signal
from collections.abc import Callable

import grpc
import pytest
from distributed.controlled import Controlled, actors, alive, groups
from distributed.scraping import wait_until_published
from distributed.speaking import ENDLESS, Served, expected, ready, states
from distributed.stand_ins import IdleRank, SpeakingRank

from outrider.cluster.api.errors import InvalidRequestError
from outrider.cluster.cli.app import run
from outrider.proto import cluster_pb2
from outrider.workers.config import EngineConfig

Start = Callable[..., Controlled]


def only_replica(served: Served) -> str:
    """Its name, once it is the only one and ready."""
    status = served.cluster.wait_for_status(lambda status: len(status.replicas) == len(ready(status)) == 1)
    return str(status.replicas[0].name)


def test_one_replica_becomes_three_and_one_again_and_no_stream_breaks(served: Served) -> None:
    assert only_replica(served) == "r0"
    scaling = served.client.scale(3)
    assert (scaling.desired, scaling.ready, scaling.pending) == (3, 1, 2)
    assert "replica r1 is starting" in scaling.reason
    assert served.client.scale(3).desired == 3, "the same number again changes nothing"
    served.cluster.wait_for_status(lambda status: ready(status) == {"r0", "r1", "r2"})

    streams = [served.stream(number, max_tokens=ENDLESS) for number in range(6)]
    status = served.cluster.wait_for_status(lambda status: all(r.engine.running == 2 for r in status.replicas))
    assert served.client.scale(1).desired == 1
    served.cluster.wait_for_status(lambda status: sorted(states(status).values()) == ["draining", "draining", "ready"])

    for number, stream in enumerate(streams):
        said = stream.cut()
        assert said == expected(number, len(said))
    status = served.cluster.wait_for_status(lambda status: len(status.replicas) == 1)
    assert status.desired_replicas == 1
    assert len(actors(served.cluster.name)) == 3, "the controller and two ranks"
    assert len(groups(served.cluster.name)) == 1


def test_a_drained_replica_finishes_its_streams_and_leaves_without_another_in_its_place(served: Served) -> None:
    only_replica(served)
    served.client.scale(2)
    status = served.cluster.wait_for_status(lambda status: len(ready(status)) == 2)
    leaving, staying = sorted(ready(status))
    streams = [served.stream(number, max_tokens=300) for number in range(2)]

    draining = served.client.drain(leaving)

    assert (draining.replica, draining.desired) == (leaving, 1)
    late = served.stream(7, max_tokens=5)
    assert [stream.rest() for stream in (*streams, late)] == [expected(0, 300), expected(1, 300), expected(7, 5)]
    assert states(served.cluster.wait_for_status(lambda status: len(status.replicas) == 1)) == {staying: "ready"}
    with pytest.raises(InvalidRequestError, match=f"no replica '{leaving}': there are {staying}"):
        served.client.drain(leaving)


def test_an_upgrade_replaces_every_replica_and_no_stream_breaks(served: Served) -> None:
    only_replica(served)
    served.client.scale(2)
    served.cluster.wait_for_status(lambda status: len(ready(status)) == 2)
    before = {rank.pid for replica in served.client.status().replicas for rank in replica.ranks}
    streams = [served.stream(number, max_tokens=300) for number in range(6)]

    assert run(["upgrade", "--address", served.client.address]) == 0

    assert [stream.rest() for stream in streams] == [expected(number, 300) for number in range(6)]
    status = served.client.status()
    assert (len(ready(status)), status.desired_replicas) == (2, 2)
    assert not before & {rank.pid for replica in status.replicas for rank in replica.ranks}
    served.client.scale(1)


@pytest.mark.full
def test_a_drain_whose_time_is_over_moves_its_streams(controlled: Start, model_path: str) -> None:
    served = Served(controlled(SpeakingRank, model_path=model_path, replicas=2, drain_grace_s=1.5))
    try:
        served.cluster.wait_for_status(lambda status: ready(status) == {"r0", "r1"})
        streams = [served.stream(number, max_tokens=1200) for number in range(2)]

        served.client.drain("r0")

        served.cluster.wait_for_status(lambda status: len(status.replicas) == 1)
        assert [stream.rest() for stream in streams] == [expected(0, 1200), expected(1, 1200)]
    finally:
        served.close()


def test_a_stream_outlives_its_replica_which_comes_back_as_the_next_generation(served: Served) -> None:
    name = only_replica(served)
    (before,) = served.cluster.status().replicas
    pids = [rank.pid for rank in before.ranks]
    stream = served.stream(3, max_tokens=ENDLESS)

    os.kill(pids[1], signal.SIGKILL)

    again = served.cluster.wait_for_status(lambda status: status.replicas[0].generation == before.generation + 1)
    assert f"pid {pids[1]}) died: its process was killed" in again.replicas[0].last_ending
    status = served.cluster.wait_for_status(lambda status: ready(status) == {name})
    said = stream.cut()
    assert said == expected(3, len(said))
    assert status.problem == ""
    assert alive(pids) == []
    assert len(groups(served.cluster.name)) == 1
    wait_until_published("ray_outrider_restarts", name, 1)


def test_more_than_fits_waits_and_says_for_what(controlled: Start) -> None:
    cluster = controlled(IdleRank, engine=EngineConfig(device="cuda"), may_grow=True)

    status = cluster.wait_for_status(lambda status: states(status) == {"r0": "waiting"})

    assert status.replicas[0].problem == "need 1 node with 2 GPUs, have none"
    assert status.problem == "replica r0 waits for resources: need 1 node with 2 GPUs, have none"
    response = cluster.stub.Scale(cluster_pb2.ScaleRequest(replicas=2))
    assert (response.desired, response.ready, response.pending) == (2, 0, 2)
    assert "need 1 node with 2 GPUs" in response.reason
    cluster.drain()
    assert actors(cluster.name) == ["controller"]
    assert groups(cluster.name) == []


def test_a_number_of_replicas_that_cannot_be_is_refused_by_name(controlled: Start) -> None:
    cluster = controlled(IdleRank)

    with pytest.raises(grpc.RpcError, match=r"replicas must be 0\.\.1024, got 5000") as caught:
        cluster.stub.Scale(cluster_pb2.ScaleRequest(replicas=5000))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.full
def test_generations_are_not_counted_anew_when_a_name_is_used_again(controlled: Start) -> None:
    cluster = controlled(IdleRank, replicas=2)
    cluster.wait_for_status(lambda status: ready(status) == {"r0", "r1"})
    for replicas in (1, 2):
        cluster.stub.Scale(cluster_pb2.ScaleRequest(replicas=replicas))
        cluster.wait_for_status(lambda status, wanted=replicas: len(ready(status)) == len(status.replicas) == wanted)

    assert [(r.name, r.generation) for r in cluster.status().replicas] == [("r0", 1), ("r1", 2)]
