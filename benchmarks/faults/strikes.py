"""How each fault is done to a cluster, a function each, and how it is seen that it was noticed."""

import os
import signal
import time
from collections.abc import Callable

from faults import troubled
from faults.cluster import Cluster
from faults.schedule import Fault

Noticed = Callable[[], bool]


def strike(cluster: Cluster, fault: Fault, target: int) -> Noticed | None:
    """Does it, and returns what says that the cluster has noticed; None if there was nothing to harm just then."""
    return _STRIKES[fault](cluster, target)


def _signal_rank(number: signal.Signals, rank: int) -> Callable[[Cluster, int], Noticed | None]:
    def send(cluster: Cluster, target: int) -> Noticed | None:
        replica = cluster.replica(target)
        if replica is None:
            return None
        os.kill(replica.ranks[rank].pid, number)
        return _generation_ends(cluster, replica.name, replica.generation)

    return send


def _hang(rank: int) -> Callable[[Cluster, int], Noticed | None]:
    def hang(cluster: Cluster, target: int) -> Noticed | None:
        replica = cluster.replica(target)
        if replica is None:
            return None
        troubled.hang(replica.ranks[rank].pid)
        return _generation_ends(cluster, replica.name, replica.generation)

    return hang


def _drain_replica(cluster: Cluster, target: int) -> Noticed | None:
    replica = cluster.replica(target)
    if replica is None:
        return None
    cluster.drain(replica.name)
    return _generation_ends(cluster, replica.name, replica.generation)


def _generation_ends(cluster: Cluster, name: str, generation: int) -> Noticed:
    def noticed() -> bool:
        ready = cluster.generations()
        return ready is not None and ready.get(name) != generation

    return noticed


def _signal_gateway(number: signal.Signals) -> Callable[[Cluster, int], Noticed | None]:
    def send(cluster: Cluster, target: int) -> Noticed | None:
        os.kill(cluster.gateways[target % len(cluster.gateways)].pid, number)
        return None  # clients notice, not the cluster

    return send


def _cut_wire(direction: str) -> Callable[[Cluster, int], Noticed | None]:
    def cut(cluster: Cluster, target: int) -> Noticed | None:
        wire = cluster.gateways[target % len(cluster.gateways)].wire
        getattr(wire, direction).clear()
        return None

    return cut


def _kill_controller(cluster: Cluster, target: int) -> Noticed | None:
    pid = cluster.controller_pid
    if pid is None:
        return None
    os.kill(pid, signal.SIGKILL)
    return lambda: cluster.controller_pid not in (None, pid) and cluster.status() is not None


_STRIKES: dict[Fault, Callable[[Cluster, int], Noticed | None]] = {
    Fault.RANK_KILL: _signal_rank(signal.SIGKILL, rank=-1),
    Fault.RANK_STOP: _signal_rank(signal.SIGSTOP, rank=-1),
    Fault.LEADER_KILL: _signal_rank(signal.SIGKILL, rank=0),
    Fault.LEADER_STOP: _signal_rank(signal.SIGSTOP, rank=0),
    Fault.ENGINE_HANG: _hang(rank=0),
    Fault.RANK_HANG: _hang(rank=-1),
    Fault.GATEWAY_KILL: _signal_gateway(signal.SIGKILL),
    Fault.GATEWAY_STOP: _signal_gateway(signal.SIGSTOP),
    Fault.GATEWAY_DRAIN: _signal_gateway(signal.SIGTERM),
    Fault.GATEWAY_DEAF: _cut_wire("to_target"),
    Fault.GATEWAY_MUTE: _cut_wire("from_target"),
    Fault.REPLICA_DRAIN: _drain_replica,
    Fault.CONTROLLER_KILL: _kill_controller,
}
FAULTS = tuple(_STRIKES)


def seconds_until(noticed: Noticed, within_s: float) -> float | None:
    """None if it does not come."""
    began = time.monotonic()
    while time.monotonic() < began + within_s:
        if noticed():
            return time.monotonic() - began
        time.sleep(0.02)
    return None
