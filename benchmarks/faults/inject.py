"""Injects faults into a cluster, and checks whether the cluster has noticed them."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from faults import faulty_rank
from faults.cluster import Cluster
from faults.proxy import Proxy
from faults.schedule import Fault

from outrider.cluster.api.status import ReplicaStatus

Noticed = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Injected:
    """`noticed`: whether the cluster has reacted; None for a gateway's faults, which only clients notice."""

    noticed: Noticed | None = None


Injector = Callable[[Cluster, int], Injected | None]


def inject(cluster: Cluster, fault: Fault, target: int) -> Injected | None:
    """None, and nothing injected, if no replica was ready or no controller was running."""
    return _INJECTORS[fault](cluster, target)


def seconds_until(noticed: Noticed, timeout_s: float) -> float | None:
    """None after the timeout."""
    start = time.monotonic()
    while time.monotonic() < start + timeout_s:
        if noticed():
            return time.monotonic() - start
        time.sleep(0.02)
    return None


def _on_replica(act: Callable[[Cluster, ReplicaStatus], None]) -> Injector:
    """Noticed once the replica's generation is no longer ready."""

    def injector(cluster: Cluster, target: int) -> Injected | None:
        replica = cluster.replica(target)
        if replica is None:
            return None
        act(cluster, replica)

        def noticed() -> bool:
            ready = cluster.generations()
            return ready is not None and ready.get(replica.name) != replica.generation

        return Injected(noticed)

    return injector


def _signal_rank(number: signal.Signals, rank: int) -> Injector:
    return _on_replica(lambda cluster, replica: os.kill(replica.ranks[rank].pid, number))


def _hang_rank(rank: int) -> Injector:
    return _on_replica(lambda cluster, replica: faulty_rank.hang(replica.ranks[rank].pid))


def _signal_gateway(number: signal.Signals) -> Injector:
    def injector(cluster: Cluster, target: int) -> Injected:
        os.kill(cluster.gateways[target % len(cluster.gateways)].pid, number)
        return Injected()

    return injector


def _cut(block: Callable[[Proxy], None]) -> Injector:
    def injector(cluster: Cluster, target: int) -> Injected:
        block(cluster.gateways[target % len(cluster.gateways)].proxy)
        return Injected()

    return injector


def _kill_controller(cluster: Cluster, target: int) -> Injected | None:
    pid = cluster.controller_pid
    if pid is None:
        return None
    os.kill(pid, signal.SIGKILL)
    return Injected(lambda: cluster.controller_pid not in (None, pid) and cluster.status() is not None)


_INJECTORS: dict[Fault, Injector] = {
    Fault.RANK_KILL: _signal_rank(signal.SIGKILL, rank=-1),
    Fault.RANK_STOP: _signal_rank(signal.SIGSTOP, rank=-1),
    Fault.LEADER_KILL: _signal_rank(signal.SIGKILL, rank=0),
    Fault.LEADER_STOP: _signal_rank(signal.SIGSTOP, rank=0),
    Fault.ENGINE_HANG: _hang_rank(rank=0),
    Fault.RANK_HANG: _hang_rank(rank=-1),
    Fault.GATEWAY_KILL: _signal_gateway(signal.SIGKILL),
    Fault.GATEWAY_STOP: _signal_gateway(signal.SIGSTOP),
    Fault.GATEWAY_DRAIN: _signal_gateway(signal.SIGTERM),
    Fault.GATEWAY_INBOUND_CUT: _cut(lambda proxy: proxy.inbound_open.clear()),
    Fault.GATEWAY_OUTBOUND_CUT: _cut(lambda proxy: proxy.outbound_open.clear()),
    Fault.REPLICA_DRAIN: _on_replica(lambda cluster, replica: cluster.drain(replica.name)),
    Fault.CONTROLLER_KILL: _kill_controller,
}
