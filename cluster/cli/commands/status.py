"""`outrider status`, `scale` and `drain`: show a cluster as a tree or JSON, and change its replicas."""

import dataclasses
import itertools
import json

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from outrider.cluster.api.status import (
    ClusterStatus,
    Draining,
    GatewayStatus,
    ReplicaStatus,
    Scaling,
    SpeculationStatus,
    WorkerStatus,
)
from outrider.cluster.cli.connection import Connection
from outrider.workers.types.counters import ExpertFigures
from outrider.workers.types.requests.sampling_params import LOOKUP

_WHOLE = 1000  # columns
_SERVING = ("ready", "draining")
_COLOURS = {"ready": "green", "failed": "red"}


def run_status(connection: Connection, *, as_json: bool) -> None:
    with connection.client() as client:
        status = client.status()
    if as_json:
        print(json.dumps(dataclasses.asdict(status), indent=2))  # noqa: T201  # the command's output
    else:
        show(tree(status), Console())


def show(drawn: Tree, console: Console) -> None:
    """Wraps long lines on a terminal only."""
    if not console.is_terminal:
        console.width = _WHOLE
    console.print(drawn, highlight=False)


def run_scale(connection: Connection, replicas: int) -> None:
    with connection.client() as client:
        scaling = client.scale(replicas)
    print(scaled(scaling))  # noqa: T201  # the command's output


def run_drain(connection: Connection, replica: str) -> None:
    with connection.client() as client:
        draining = client.drain(replica)
    print(drained(draining))  # noqa: T201  # the command's output


def scaled(scaling: Scaling) -> str:
    line = f"{_replicas(scaling.desired)} wanted: {scaling.ready} ready, {scaling.pending} pending"
    return f"{line} ({scaling.reason})" if scaling.reason else line


def drained(draining: Draining) -> str:
    running = "1 sequence" if draining.running == 1 else f"{draining.running} sequences"
    return f"{draining.replica} drains with {running} running; {_replicas(draining.desired)} desired from now on"


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def tree(status: ClusterStatus) -> Tree:
    """Replicas, their stages, and the ranks of each stage."""
    ready = sum(replica.state == "ready" for replica in status.replicas)
    head = f"[bold]{escape(status.name)}[/] serves {escape(status.model)} (outrider {status.version}): "
    root = Tree(head + f"{ready} of {_replicas(status.desired_replicas)} ready")
    if status.problem:
        root.add(f"[red]{escape(status.problem)}[/]")
    if status.last_scaling:
        root.add(f"[dim]autoscaler: {escape(status.last_scaling)}[/]")
    if status.gateway is not None:
        root.add(gateway_line(status.gateway))
    for replica in status.replicas:
        _add_replica(root, replica)
    return root


def gateway_line(gateway: GatewayStatus) -> str:
    """Live and waiting requests at the gateway, then counts that are not 0."""
    parts = [f"{gateway.live_requests} live, {gateway.queued_requests} queued"]
    counts = (
        (gateway.waiting_for_successor, "waiting for another replica"),
        (gateway.resumed, "resumed"),
        (gateway.moved, "moved"),
        (gateway.slow_readers, "ended unread"),
        (gateway.stalled_replicas, "replicas stalled"),
    )
    parts += [f"{count} {what}" for count, what in counts if count]
    if gateway.refused:
        parts.append("refused: " + ", ".join(f"{cause} {count}" for cause, count in gateway.refused.items()))
    parts.append(f"event loop lag at most {1000 * gateway.longest_loop_lag_s:.0f} ms")
    lost = " [red]controller lost[/]" if gateway.controller_lost else ""
    return f"gateway: {'; '.join(parts)}{lost}"


def _add_replica(root: Tree, replica: ReplicaStatus) -> None:
    branch = root.add(f"[bold]{replica.name}[/], generation {replica.generation}: {_replica_state(replica)}")
    if replica.last_ending:
        branch.add(f"[dim]{escape(replica.last_ending)}[/]")
    if replica.state in _SERVING:
        branch.add(speculation_line(replica.engine.speculation))
    if replica.engine.experts.imbalance and replica.state == "ready":
        branch.add(experts_line(replica.engine.experts))
    for stage, ranks in itertools.groupby(replica.ranks, key=lambda rank: rank.stage):
        _add_stage(branch, stage, list(ranks))


def _replica_state(replica: ReplicaStatus) -> str:
    load = f", {_load(replica)}" if replica.state in _SERVING else ""
    problem = f": {escape(replica.problem)}" if replica.problem else ""
    return f"{_coloured(replica.state)}{load}{problem}"


def _add_stage(branch: Tree, stage: int, ranks: list[WorkerStatus]) -> None:
    first = ranks[0]
    label = branch.add(f"stage {stage}, layers {first.first_layer}..{first.end_layer - 1}")
    for rank in ranks:
        drafting = f", drafting {rank.drafting:.0%}" if rank.drafting else ""
        label.add(f"rank {rank.rank}: {_coloured(rank.state)}, {_place(rank)}, busy {rank.busy:.0%}{drafting}")


def _place(rank: WorkerStatus) -> str:
    """The rank's node, process and devices, as far as they are known."""
    device = f"{rank.device} {rank.visible_devices}".strip()
    via = f"via {rank.interface}" if rank.interface else ""
    process = f"pid {rank.pid}" if rank.pid else ""
    exchange = f"exchanges over {rank.carriers}" if rank.carriers else ""
    return ", ".join(escape(part) for part in (rank.node, process, device, via, exchange) if part)


def _load(replica: ReplicaStatus) -> str:
    engine = replica.engine
    return (
        f"{engine.running} running, {engine.waiting} waiting, {engine.rounds} rounds, "
        f"cache {engine.kv_cache_usage:.0%} full, numerics {replica.fingerprint}"
    )


def speculation_line(speculation: SpeculationStatus) -> str:
    """One line: the effect of speculation, or why it is off or disabled, and any alarms."""
    words = _speculation(speculation)
    if speculation.drafters == (LOOKUP,):
        words += f", prompt lookup only ({'engine setting' if speculation.has_mtp else 'no MTP weights'})"
    raised = [f"{alarm} x{count}" for alarm, count in speculation.alarms.items() if count]
    return f"speculation: {escape(words)}" + (f" [red]alarms: {', '.join(raised)}[/]" if raised else "")


def _speculation(speculation: SpeculationStatus) -> str:
    if speculation.setting == "off":
        return "off (engine setting)"
    if speculation.disabled_rounds:
        rounds = "1 more round" if speculation.disabled_rounds == 1 else f"{speculation.disabled_rounds} more rounds"
        return f"disabled for {rounds}: {speculation.disabled_reason} (budget {speculation.budget:.1f} rounds)"
    if not speculation.drafts:
        return "no drafts yet"
    figures = (
        f"draft depth {speculation.draft_depth:.1f}, acceptance rate {speculation.acceptance_rate:.0%}, "
        f"mean accepted length {speculation.mean_accepted_length:.1f}"
    )
    return f"{speculation.speedup:.2f}x speed-up, {figures}" if speculation.speedup else figures


def experts_line(experts: ExpertFigures) -> str:
    """The load imbalance of ranks, at the worst layer and on average, and the number of moves."""
    layer, worst = max(experts.imbalance.items(), key=lambda each: each[1])
    mean = sum(experts.imbalance.values()) / len(experts.imbalance)
    line = (
        f"experts: heaviest rank {mean:.2f} x the mean, {worst:.2f} at layer {layer},"
        f" {experts.replacements} layers rebalanced, {experts.moves} experts moved"
    )
    return line + (" [red]a rank could not load an expert: rebalancing is disabled[/]" if experts.stopped else "")


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state, "yellow")
    return f"[{colour}]{state}[/]"
