"""Injects faults into a cluster, and checks whether the cluster has noticed them."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.faults import faulty_rank
from benchmarks.faults.cluster import Cluster, gateway_machine
from benchmarks.faults.network import HEAD
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.schedule import Fault
from outrider.cluster.api.status import ReplicaStatus

Noticed = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Injected:
    """`noticed`: whether the cluster has reacted; None for a gateway's faults, which only clients notice. `began_at`:
    when the fault took effect, by time.monotonic(), if that was later; None if it has not yet."""

    noticed: Noticed | None = None
    began_at: Callable[[], float | None] | None = None


Injector = Callable[[Cluster, int], Injected | None]


def inject(cluster: Cluster, fault: Fault, target: int) -> Injected | None:
    """None, and nothing injected, if no replica was ready or no controller was running."""
    return _INJECTORS[fault](cluster, target)


def seconds_until_noticed(injected: Injected, timeout_s: float) -> float | None:
    """Since the fault took effect. None after the timeout, and if the fault had no effect."""
    assert injected.noticed is not None
    start = time.monotonic()
    while not injected.noticed():
        if time.monotonic() > start + timeout_s:
            return None
        time.sleep(0.02)
    began = injected.began_at() if injected.began_at is not None else start
    return time.monotonic() - began if began is not None else None


def _on_replica(
    act: Callable[[Cluster, ReplicaStatus], None], began_at: Callable[[ReplicaStatus], float | None] | None = None
) -> Injector:
    """Noticed once the replica's generation is no longer ready."""

    def injector(cluster: Cluster, target: int) -> Injected | None:
        replica = cluster.replica(target)
        if replica is None:
            return None
        act(cluster, replica)

        def noticed() -> bool:
            ready = cluster.generations()
            return ready is not None and ready.get(replica.name) != replica.generation

        return Injected(noticed, None if began_at is None else lambda: began_at(replica))

    return injector


def _signal_rank(number: signal.Signals, rank: int) -> Injector:
    return _on_replica(lambda cluster, replica: os.kill(replica.ranks[rank].pid, number))


def _hang_rank(rank: int) -> Injector:
    return _on_replica(
        lambda cluster, replica: faulty_rank.hang(replica.ranks[rank].pid),
        lambda replica: faulty_rank.hung_at(replica.ranks[rank].pid),
    )


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


def _black_hole(cluster: Cluster, replica: ReplicaStatus) -> None:
    assert cluster.nodes is not None
    cluster.nodes.network.black_hole(_machine_of(cluster, replica, -1))


def _machine_of(cluster: Cluster, replica: ReplicaStatus, rank: int) -> str:
    """ProcessLookupError if the rank has just ended."""
    assert cluster.nodes is not None, "chaos.py --nodes"
    machine = cluster.nodes.network.machine_of(replica.ranks[rank].pid)
    if machine is None:
        raise ProcessLookupError(f"rank {rank} of {replica.name} is on no machine")
    return machine


def _cut_between_ranks(source: int, destination: int) -> Injector:
    def act(cluster: Cluster, replica: ReplicaStatus) -> None:
        assert cluster.nodes is not None, "chaos.py --nodes"
        cluster.nodes.network.cut(_machine_of(cluster, replica, source), _machine_of(cluster, replica, destination))

    return _on_replica(act)


def _cut_leader(*, outwards: bool, at_gateway: bool) -> Injector:
    """The way between a leader and the controller, or the gateway of the same number."""

    def injector(cluster: Cluster, target: int) -> Injected | None:
        other = gateway_machine(target % len(cluster.gateways)) if at_gateway else HEAD

        def act(cluster: Cluster, replica: ReplicaStatus) -> None:
            assert cluster.nodes is not None, "chaos.py --nodes"
            leader = _machine_of(cluster, replica, 0)
            cluster.nodes.network.cut(*((leader, other) if outwards else (other, leader)))

        injected = _on_replica(act)(cluster, target)
        return Injected() if injected is not None and at_gateway else injected

    return injector


def _kill_gcs(cluster: Cluster, target: int) -> Injected | None:
    assert cluster.nodes is not None, "chaos.py --nodes"
    return Injected() if cluster.nodes.kill_gcs() else None


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
    Fault.NODE_BLACK_HOLE: _on_replica(_black_hole),
    Fault.GATEWAY_TO_LEADER_CUT: _cut_leader(outwards=False, at_gateway=True),
    Fault.LEADER_TO_GATEWAY_CUT: _cut_leader(outwards=True, at_gateway=True),
    Fault.CONTROLLER_TO_LEADER_CUT: _cut_leader(outwards=False, at_gateway=False),
    Fault.LEADER_TO_CONTROLLER_CUT: _cut_leader(outwards=True, at_gateway=False),
    Fault.LEADER_TO_RANK_CUT: _cut_between_ranks(0, -1),
    Fault.RANK_TO_LEADER_CUT: _cut_between_ranks(-1, 0),
    Fault.GCS_KILL: _kill_gcs,
}
