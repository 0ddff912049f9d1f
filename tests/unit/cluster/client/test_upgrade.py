"""Replicas are replaced one after the other, and at no time do fewer serve than are wanted."""

import itertools
import random
from dataclasses import dataclass, field, replace

import pytest

from outrider.cluster.api.status import ClusterStatus, EngineStatus, ReplicaStatus
from outrider.cluster.client.upgrade import Done, DrainOld, ScaleTo, Wait, identities, next_step

ENGINE = EngineStatus(running=0, waiting=0, rounds=0, kv_cache_usage=0.0, drafted=0, accepted=0)


def a_replica(name: str, state: str = "ready", problem: str = "") -> ReplicaStatus:
    return ReplicaStatus(name=name, generation=1, state=state, problem=problem, ranks=(), engine=ENGINE)


@dataclass
class Cluster:
    """Replicas that start and leave in their own time."""

    dice: random.Random
    replicas: list[ReplicaStatus]
    desired: int
    numbers: itertools.count = field(default_factory=lambda: itertools.count(100))

    @property
    def status(self) -> ClusterStatus:
        return ClusterStatus(
            name="c", model="m", version="0", replicas=tuple(self.replicas), problem="", desired_replicas=self.desired
        )

    @property
    def serving(self) -> int:
        return sum(one.state == "ready" for one in self.replicas)

    def pass_time(self) -> None:
        self.replicas = [one for one in self.replicas if one.state != "draining" or self.dice.random() < 0.7]
        ready = [replace(one, state="ready") if self.dice.random() < 0.3 else one for one in self.replicas]
        self.replicas = [new if one.state == "starting" else one for one, new in zip(self.replicas, ready, strict=True)]

    def do(self, step: object) -> None:
        match step:
            case ScaleTo(replicas):
                self.desired = replicas
            case DrainOld(name):
                self.desired -= 1
                self.replicas = [replace(one, state="draining") if one.name == name else one for one in self.replicas]
        missing = self.desired - sum(one.state != "draining" for one in self.replicas)
        assert missing >= 0, "the roster would choose which leaves"
        self.replicas += [a_replica(f"r{next(self.numbers)}", "starting") for _ in range(missing)]


@pytest.mark.parametrize("seed", range(20))
def test_all_are_replaced_and_never_do_fewer_serve_than_are_wanted(seed: int) -> None:
    dice = random.Random(seed)
    wanted = dice.randint(1, 5)
    cluster = Cluster(dice, [a_replica(f"r{n}") for n in range(wanted)], wanted)
    old = identities(cluster.status)

    for _ in range(500):
        step = next_step(cluster.status, old, wanted)
        if isinstance(step, Done):
            break
        cluster.do(step)
        assert cluster.serving >= wanted
        assert len(cluster.replicas) <= 2 * wanted + 1
        cluster.pass_time()

    assert isinstance(step, Done)
    assert cluster.serving == cluster.desired == wanted
    assert not old & identities(cluster.status)


def test_why_the_spare_is_not_there_is_said() -> None:
    cluster = Cluster(random.Random(0), [a_replica("r0"), a_replica("r1", "waiting", "need 2 nodes")], 2)

    assert next_step(cluster.status, {("r0", 1)}, 1) == Wait("r1: need 2 nodes")
