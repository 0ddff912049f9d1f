"""Streams without an end in sight and a fault a minute: what is lost, and what processes that live on have gained."""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any

import psutil
from faults.cluster import Cluster
from faults.crowd import Crowd, Stream
from faults.oracle import Heard
from faults.questions import Question
from faults.strikes import FAULTS, strike

STREAMS = 128
FAULT_EVERY_S = 60.0
FROZEN_S = 20.0
SETTLED = 0.2  # share of the time after which processes have what they need


async def soak(
    cluster: Cluster, crowd: Crowd, questions: Sequence[Question], minutes: float, seed: int
) -> dict[str, Any]:
    twins = await crowd.answers(questions)
    until = time.monotonic() + 60 * minutes
    wrong: list[str] = []
    counts = {"streams": 0, "lost": 0}

    async def keep_asking(number: int) -> None:
        asked = number
        while time.monotonic() < until:
            stream = Stream(questions[asked % len(questions)], number % 2)
            await stream.run(crowd.clients[stream.client])
            _judge(stream, twins, counts, wrong)
            asked += STREAMS

    usage = asyncio.create_task(_watch_usage(60 * minutes))
    faults = asyncio.create_task(_strike_now_and_then(cluster, until, seed))
    await asyncio.gather(*(keep_asking(number) for number in range(STREAMS)))
    struck = await faults
    await asyncio.to_thread(cluster.mend)
    return {**counts, "changed": len(wrong) - counts["lost"], "faults": struck, "grown": await usage}


def _judge(stream: Stream, twins: dict[str, Heard], counts: dict[str, int], wrong: list[str]) -> None:
    counts["streams"] += 1
    if texts := stream.wrong(twins[stream.question.name]):
        counts["lost"] += bool(stream.error)
        wrong.append(stream.question.name)
        print(f"  {stream.question.name}: {'; '.join(texts)[:600]}", flush=True)


async def _strike_now_and_then(cluster: Cluster, until: float, seed: int) -> int:
    rng, struck = random.Random(seed), 0
    while time.monotonic() + FAULT_EVERY_S < until:
        await asyncio.sleep(FAULT_EVERY_S)
        fault, target = rng.choice(FAULTS), rng.randrange(2)
        print(f"minute {struck + 1}: {fault.value} of {target}", flush=True)
        await asyncio.to_thread(strike, cluster, fault, target)
        struck += 1
        await asyncio.sleep(min(FROZEN_S, FAULT_EVERY_S / 3))
        cluster.thaw()
    return struck


async def _watch_usage(seconds: float) -> dict[str, Any]:
    """Of our processes that lived through it all: what they had at first, and in the end."""
    await asyncio.sleep(SETTLED * seconds)
    before = _usage()
    await asyncio.sleep((1 - SETTLED) * seconds)
    after = _usage()
    return {name: {"before": had, "after": after[name]} for name, had in before.items() if name in after}


def _usage() -> dict[str, dict[str, int]]:
    """Threads, descriptors and memory of the gateways, the ranks, the controller and this process."""
    found = {}
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if process == me or "gateway" in line or "ray::" in line:
                name = "this process" if process == me else line.split()[0] if "ray::" in line else "gateway"
                found[f"{name} {process.pid}"] = {
                    "threads": process.num_threads(),
                    "descriptors": process.num_fds(),
                    "memory_mb": process.memory_info().rss >> 20,
                }
    return found
