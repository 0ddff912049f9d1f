"""`outrider status`: what a cluster says of itself, as a table or as JSON."""

import dataclasses
import json

from rich.console import Console
from rich.table import Table

from outrider.cluster.cli_connection import Connection
from outrider.cluster.status import ClusterStatus, ReplicaStatus

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


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state, "yellow")
    return f"[{colour}]{state}[/]"
