"""A real controller on a real Ray, over ranks that have no engine, and what tests look at."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psutil
import ray
from ray.util import placement_group_table

from outrider import Client
from outrider.cluster.api.errors import UnavailableError
from outrider.cluster.controller.bootstrap import call_controller, start_controller
from outrider.cluster.controller.cluster_spec import ClusterSpec
from outrider.cluster.controller.gangs.processes import processes_of
from outrider.cluster.controller.leftovers import remove_leftovers
from outrider.cluster.controller.names import controller_name, prefix
from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.replicas.report import Report
from outrider.cluster.planning.shard_plan import ShardPlan
from outrider.proto import cluster_pb2, cluster_pb2_grpc
from outrider.workers.config import EngineConfig
from outrider.workers.serving.actor import RankFactory

PLAN = ShardPlan(layer_splits=((0, 7), (7, 13)))


class Controlled:
    """A cluster of replicas of two ranks. `name` is what its actors and groups are found by."""

    def __init__(self, name: str, factory: RankFactory, **changes: Any) -> None:
        """`changes`: ClusterSpec's own fields."""
        self.name = name
        spec = ClusterSpec(
            **{
                "cluster": name,
                "model_name": "M",
                "model_path": "/models/M",
                "engine": EngineConfig(),
                "plan": PLAN,
                "factory": factory,
                **changes,
            }
        )
        self.controller: Any = start_controller(spec)  # its methods as Ray calls them
        self.address: str = ray.get(self.controller.open.remote())
        self._channel = grpc.insecure_channel(self.address)
        self.stub = cluster_pb2_grpc.ControllerServiceStub(self._channel)

    def heartbeat(self) -> Report:
        report: Report = ray.get(self.controller.heartbeat.remote())
        return report

    def heartbeat_again(self) -> None:
        """Returns once a controller that was killed is back."""
        call_controller(self.controller, "heartbeat", timeout_s=30)

    def wait_for(self, phase: Phase, within_s: float = 90.0) -> Report:
        until = time.monotonic() + within_s
        while (report := self.heartbeat()).phase is not phase:
            assert time.monotonic() < until, f"still {report} after {within_s} s"
            time.sleep(0.05)
        return report

    def status(self) -> cluster_pb2.GetStatusResponse:
        return self.stub.GetStatus(cluster_pb2.GetStatusRequest(), wait_for_ready=True, timeout=30)

    def wait_for_status(
        self, holds: Callable[[cluster_pb2.GetStatusResponse], bool], within_s: float = 90.0
    ) -> cluster_pb2.GetStatusResponse:
        """The first status of which it holds."""
        request = cluster_pb2.WatchStatusRequest()
        for response in self.stub.WatchStatus(request, timeout=within_s, wait_for_ready=True):
            if holds(response.status):
                return response.status
        raise AssertionError("the controller ended the stream")

    def pids(self) -> list[int]:
        """Of the ranks, in order."""
        status = self.status()
        return [rank.pid for rank in status.replicas[0].ranks]

    def problem(self) -> str:
        """Why the cluster cannot serve, as `outrider status` says it."""
        return str(self.stub.GetStatus(cluster_pb2.GetStatusRequest()).problem)

    def tables(self) -> Iterator[cluster_pb2.WatchRoutesResponse]:
        """The routing tables from now on."""
        stream: Iterator[cluster_pb2.WatchRoutesResponse] = self.stub.WatchRoutes(
            cluster_pb2.WatchRoutesRequest(), timeout=90
        )
        return stream

    def drain(self) -> None:
        ray.get(self.controller.drain.remote(), timeout=60)

    def close(self) -> None:
        self._channel.close()


@contextmanager
def own_name() -> Iterator[str]:
    """A cluster's name that nobody else has; what is left under it is removed."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    remove_leftovers(name)


def actors(name: str) -> list[str]:
    """What Ray has under a cluster's name, without the name."""
    mine: list[str] = [actor for actor in ray.util.list_named_actors() if actor.startswith(prefix(name))]
    return sorted(actor.removeprefix(prefix(name)) for actor in mine)


def groups(name: str) -> list[dict[str, Any]]:
    table = placement_group_table().values()
    return [group for group in table if group["name"].startswith(prefix(name)) and group["state"] != "REMOVED"]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def kill_controller(name: str) -> None:
    """As when it runs out of memory."""
    ((_, pid),) = processes_of([controller_name(name)]).values()
    os.kill(pid, signal.SIGKILL)


def wait_until_status_works(client: Client, within_s: float = 60.0) -> None:
    """Some seconds after its controller was killed; more where other programs compute."""
    until = time.monotonic() + within_s
    while True:
        try:
            client.status()
            return
        except UnavailableError:
            assert time.monotonic() < until
            time.sleep(0.1)


def is_owned(name: str) -> bool:
    """Whether the controller of that name believes that the `outrider serve` which started it is still there."""
    return bool(call_controller(ray.get_actor(controller_name(name)), "owner_alive", timeout_s=60))


def wait_until_abandoned(name: str, within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while is_owned(name):
        assert time.monotonic() < until
        time.sleep(0.1)
