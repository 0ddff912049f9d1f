"""Several replicas under a real controller on a real Ray, with a real gateway: scale, drain, ends of generations."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from distributed.controlled import Controlled, actors, alive, groups
from distributed.stand_ins import IdleRank, SpeakingRank
from small_tokenizer import write_tokenizer

from outrider import Client
from outrider.cluster.errors import InvalidRequestError
from outrider.cluster.gateway.door import Door
from outrider.cluster.gateway_process import GatewayProcess, free_port
from outrider.cluster.generation import Output
from outrider.proto import cluster_pb2
from outrider.workers.cluster_key import draw_key
from outrider.workers.config import EngineConfig

Start = Callable[..., Controlled]
Status = cluster_pb2.GetStatusResponse


def states(status: Status) -> dict[str, str]:
    return {replica.name: replica.state for replica in status.replicas}


def ready(status: Status) -> set[str]:
    return {name for name, state in states(status).items() if state == "ready"}


class Served:
    """A controller of replicas that speak, a gateway process, and a client of it."""

    def __init__(self, cluster: Controlled) -> None:
        self.cluster = cluster
        self._stop = threading.Event()
        self._gateway = GatewayProcess(
            controller=cluster.address,
            host="127.0.0.1",
            port=free_port("127.0.0.1"),
            metrics_port=None,
            door=Door(),
            cluster_key=draw_key(),  # which this controller, having none, does not ask for
            log_level="error",
        )
        self._gateway.wait_until_ready(self._stop)
        self.client = Client(self._gateway.address)

    def stream(self, number: int, max_tokens: int) -> "Stream":
        return Stream(self.client, number, max_tokens)

    def close(self) -> None:
        self.client.close()
        self._stop.set()
        self._gateway.close(self._stop)


class Stream:
    """A request on a thread of its own; has its first token when constructed."""

    def __init__(self, client: Client, number: int, max_tokens: int) -> None:
        self.token_ids: list[int] = []
        self.error: Exception | None = None
        self._first = threading.Event()
        self._events = client.stream(token_ids=[5 + number], max_tokens=max_tokens, seed=number)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._first.wait(30), "no token came"

    def _read(self) -> None:
        try:
            for event in self._events:
                if isinstance(event, Output):
                    self.token_ids += event.token_ids
                    self._first.set()
        except Exception as error:  # for the test's own thread
            self.error = error

    def rest(self) -> list[int]:
        """Every token, once it has ended well."""
        self._thread.join(60)
        assert self.error is None
        return self.token_ids


@pytest.fixture
def model_path(tmp_path: Path) -> str:
    return str(write_tokenizer(tmp_path))


@pytest.fixture
def served(controlled: Start, model_path: str) -> Iterator[Served]:
    one = Served(controlled(SpeakingRank, model_path=model_path))
    yield one
    one.close()


def expected(number: int, tokens: int) -> list[int]:
    """What a SpeakingRank's engine says to `Served.stream(number, tokens)`."""
    return [100 + (5 + number + step) % 100 for step in range(tokens)]


def test_one_replica_becomes_three_and_one_again_and_every_stream_finishes(served: Served) -> None:
    scaling = served.client.scale(3)
    assert (scaling.desired, scaling.ready, scaling.pending) == (3, 1, 2)
    assert "replica r1 is starting" in scaling.reason
    assert served.client.scale(3).desired == 3, "the same number again changes nothing"
    served.cluster.wait_for_status(lambda status: ready(status) == {"r0", "r1", "r2"})

    streams = [served.stream(number, max_tokens=400) for number in range(6)]
    status = served.cluster.wait_for_status(lambda status: all(r.engine.running == 2 for r in status.replicas))
    assert served.client.scale(1).desired == 1
    status = served.cluster.wait_for_status(
        lambda status: sorted(states(status).values()) == ["draining", "draining", "ready"]
    )

    assert [stream.rest() for stream in streams] == [expected(number, 400) for number in range(6)]
    status = served.cluster.wait_for_status(lambda status: len(status.replicas) == 1)
    assert status.desired_replicas == 1
    assert len(actors(served.cluster.name)) == 3, "the controller and two ranks"
    assert len(groups(served.cluster.name)) == 1


def test_a_drained_replica_finishes_its_streams_and_leaves_without_another_in_its_place(served: Served) -> None:
    served.client.scale(2)
    served.cluster.wait_for_status(lambda status: ready(status) == {"r0", "r1"})
    streams = [served.stream(number, max_tokens=300) for number in range(2)]

    draining = served.client.drain("r0")

    assert (draining.replica, draining.desired) == ("r0", 1)
    late = served.stream(7, max_tokens=5)
    assert [stream.rest() for stream in (*streams, late)] == [expected(0, 300), expected(1, 300), expected(7, 5)]
    assert states(served.cluster.wait_for_status(lambda status: len(status.replicas) == 1)) == {"r1": "ready"}
    with pytest.raises(InvalidRequestError, match="no replica 'r0': there are r1"):
        served.client.drain("r0")


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
    stream = served.stream(3, max_tokens=1500)
    pids = served.cluster.pids()

    os.kill(pids[1], signal.SIGKILL)

    again = served.cluster.wait_for_status(lambda status: status.replicas[0].generation == 2)
    assert f"pid {pids[1]}) died: its process was killed" in again.replicas[0].last_ending
    assert stream.rest() == expected(3, 1500)
    status = served.cluster.wait_for_status(lambda status: ready(status) == {"r0"})
    assert status.problem == ""
    assert alive(pids) == []
    assert len(groups(served.cluster.name)) == 1


def test_more_than_fits_waits_and_says_for_what(controlled: Start) -> None:
    cluster = controlled(IdleRank, engine=EngineConfig(device="cuda"), may_grow=True)

    status = cluster.wait_for_status(lambda status: states(status) == {"r0": "waiting"})

    assert status.replicas[0].problem == "need 1 node with 2 GPUs, have none"
    assert status.problem == "replica r0 waits for room: need 1 node with 2 GPUs, have none"
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
