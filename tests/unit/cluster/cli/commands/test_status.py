"""`outrider status` as a tree, and the lines of `scale` and `drain`."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from outrider.cluster.api.status import (
    ClusterStatus,
    Draining,
    EngineStatus,
    ReplicaStatus,
    Scaling,
    SpeculationStatus,
    WorkerStatus,
)
from outrider.cluster.cli.commands.status import drained, scaled, show, tree

RANK = WorkerStatus(
    rank=0,
    stage=0,
    first_layer=0,
    end_layer=7,
    node="gpu-a",
    pid=123,
    device="cuda",
    state="ready",
    busy=0.5,
    visible_devices="3",
    interface="eth0",
    node_id="abc",
)
ENGINE = EngineStatus(
    running=2, waiting=1, rounds=9, kv_cache_usage=0.25, drafted=10, accepted=9,
    speculation=SpeculationStatus(setting="off"),
)  # fmt: skip
REPLICA = ReplicaStatus(
    name="r0",
    generation=2,
    state="ready",
    problem="",
    ranks=(
        replace(RANK, drafting=0.2),
        replace(RANK, rank=1, pid=124, carriers="shared memory"),
        replace(RANK, rank=2, stage=1, first_layer=7, end_layer=13),
    ),
    engine=ENGINE,
    last_ending="generation 1 ended: rank 1 [bold] died",
    fingerprint="0123abcd",
)


def drawn(*replicas: ReplicaStatus, problem: str = "", last_scaling: str = "") -> list[str]:
    status = ClusterStatus(
        name="c",
        model="scout",
        version="1",
        replicas=replicas,
        problem=problem,
        desired_replicas=3,
        last_scaling=last_scaling,
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(tree(status), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_cluster_is_drawn_as_replicas_stages_and_ranks() -> None:
    assert drawn(REPLICA) == [
        "c serves scout (outrider 1): 1 of 3 replicas ready",
        "└── r0, generation 2: ready, 2 running, 1 waiting, 9 rounds, cache 25% full, numerics 0123abcd",
        "    ├── generation 1 ended: rank 1 [bold] died",
        "    ├── speculation: off (engine setting)",
        "    ├── stage 0, layers 0..6",
        "    │   ├── rank 0: ready, gpu-a, pid 123, cuda 3, via eth0, busy 50%, drafting 20%",
        "    │   └── rank 1: ready, gpu-a, pid 124, cuda 3, via eth0, exchanges over shared memory, busy 50%",
        "    └── stage 1, layers 7..12",
        "        └── rank 2: ready, gpu-a, pid 123, cuda 3, via eth0, busy 50%",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_narrow_terminal_folds_lines_and_a_pipe_gets_them_whole(terminal: bool) -> None:
    status = ClusterStatus(name="c", model="scout", version="1", replicas=(REPLICA,), problem="", desired_replicas=1)
    file = io.StringIO()

    show(tree(status), Console(file=file, width=60, force_terminal=terminal, color_system=None))

    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    words = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    assert "9 rounds, cache 25% full" in words
    assert (max(map(len, lines)) > 60) is not terminal


def test_what_a_replica_waits_for_stands_beside_it() -> None:
    rank = replace(RANK, node="", pid=0, device="auto", visible_devices="", interface="", state="starting", busy=0)
    waiting = replace(REPLICA, state="waiting", problem="need 2 nodes", ranks=(rank,), last_ending="")

    lines = drawn(waiting, problem="replica r0 waits for resources: need 2 nodes", last_scaling="1 -> 3 replicas: load")

    assert lines[1] == "├── replica r0 waits for resources: need 2 nodes"
    assert lines[2] == "├── autoscaler: 1 -> 3 replicas: load"
    assert lines[3] == "└── r0, generation 2: waiting: need 2 nodes"
    assert lines[5] == "        └── rank 0: starting, auto, busy 0%"


def test_scaling_says_how_many_are_wanted_ready_and_pending_and_why() -> None:
    pending = Scaling(desired=3, ready=1, pending=2, reason="replica r1 is starting")

    assert scaled(pending) == "3 replicas wanted: 1 ready, 2 pending (replica r1 is starting)"
    assert scaled(Scaling(desired=1, ready=1, pending=0, reason="")) == "1 replica wanted: 1 ready, 0 pending"


def test_draining_says_what_is_still_running() -> None:
    assert drained(Draining(replica="r1", running=1, desired=2)) == (
        "r1 drains with 1 sequence running; 2 replicas desired from now on"
    )
