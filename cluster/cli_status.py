"""`outrider status`: what a cluster says of itself, as a table or as JSON."""

import dataclasses
import json

from rich.console import Console
from rich.table import Table

from outrider.cluster.cli_connection import Connection
from outrider.cluster.status import ClusterStatus, ReplicaStatus, SpeculationStatus

_COLOURS = {"ready": "green", "failed": "red"}


def run_status(connection: Connection, *, as_json: bool) -> None:
    with connection.client() as client:
        status = client.status()
    if as_json:
        print(json.dumps(dataclasses.asdict(status), indent=2))  # noqa: T201  # the command's output
    else:
        render(status, Console())


def render(status: ClusterStatus, console: Console) -> None:
    console.print(f"[bold]{status.name}[/] serves {status.model} (outrider {status.version})", highlight=False)
    if status.problem:
        console.print(status.problem, style="red", highlight=False, markup=False, soft_wrap=True)
    for replica in status.replicas:
        console.print(_ranks(replica))
        console.print(_load(replica), highlight=False)
        if replica.engine.drafted:
            console.print(speculation_line(replica.engine.speculation), highlight=False)


def _ranks(replica: ReplicaStatus) -> Table:
    title = f"{replica.name}, generation {replica.generation}: {_coloured(replica.state)}"
    table = Table(
        "rank", "stage", "layers", "node", "pid", "device", "state", "busy", title=title, title_justify="left"
    )
    for rank in replica.ranks:
        table.add_row(
            str(rank.rank),
            str(rank.stage),
            f"{rank.first_layer}..{rank.end_layer - 1}",
            rank.node,
            str(rank.pid or ""),
            rank.device,
            _coloured(rank.state),
            f"{rank.busy:.0%}",
        )
    return table


def _load(replica: ReplicaStatus) -> str:
    engine = replica.engine
    accepted = (
        f"{engine.accepted / engine.drafted:.0%} of {engine.drafted} drafts accepted" if engine.drafted else "no drafts"
    )
    return (
        f"{engine.running} running, {engine.waiting} waiting, {engine.rounds} rounds, {accepted}, "
        f"cache {engine.kv_cache_usage:.0%} full"
    )


def speculation_line(speculation: SpeculationStatus) -> str:
    """Depth, gain, price, ledger, acceptance, and what seems broken, in one line."""
    accepted = " ".join(f"{share:.2f}" for share in speculation.acceptance[:8])
    ledger = "stopped, the ledger is empty" if speculation.stopped else f"ledger {speculation.ledger:.1f} rounds"
    words = [
        f"speculation: {speculation.gain:.2f} x off, depth {speculation.depth:.1f}",
        f"price {speculation.price:.0f} tokens/s",
        ledger,
        f"accepted at 1.. {accepted}",
    ]
    raised = [f"{alarm} x{count}" for alarm, count in speculation.alarms.items() if count]
    return ", ".join(words) + (f" [red]alarms: {', '.join(raised)}[/]" if raised else "")


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state, "yellow")
    return f"[{colour}]{state}[/]"
