"""Streams for many minutes with a fault every minute: what is lost, and whether surviving processes leak resources."""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.inject import inject
from benchmarks.faults.load import Baseline, LoadGenerator, Stream
from benchmarks.faults.requests import ChaosRequest
from benchmarks.faults.schedule import FAULTS

STREAMS = 128
FAULT_EVERY_S = 60.0
FROZEN_S = 20.0
WARM_UP = 0.2  # share of the time before usage is first measured


async def soak(
    cluster: Cluster, load: LoadGenerator, requests: Sequence[ChaosRequest], minutes: float, seed: int
) -> dict[str, Any]:
    baseline = await load.baseline(requests)
    until = time.monotonic() + 60 * minutes
    wrong: list[str] = []
    counts = {"streams": 0, "lost": 0}

    async def keep_streaming(number: int) -> None:
        while time.monotonic() < until:
            stream = Stream(requests[number % len(requests)], number % 2)
            await stream.run(load.clients[stream.client])
            _check(stream, baseline, counts, wrong)
            number += STREAMS

    usage = asyncio.create_task(_watch_usage(60 * minutes))
    injecting = asyncio.create_task(_inject_faults(cluster, until, seed))
    await asyncio.gather(*(keep_streaming(number) for number in range(STREAMS)))
    faults = await injecting
    await asyncio.to_thread(cluster.restore)
    return {**counts, "changed": len(wrong) - counts["lost"], "faults": faults, "grown": await usage}


def _check(stream: Stream, baseline: Baseline, counts: dict[str, int], wrong: list[str]) -> None:
    counts["streams"] += 1
    if texts := stream.problems(baseline[stream.request.name]):
        counts["lost"] += bool(stream.error)
        wrong.append(stream.request.name)
        print(f"  {stream.request.name}: {'; '.join(texts)[:600]}", flush=True)


async def _inject_faults(cluster: Cluster, until: float, seed: int) -> int:
    """How many faults were injected."""
    rng, minute, injected = random.Random(seed), 0, 0
    while time.monotonic() + FAULT_EVERY_S < until:
        await asyncio.sleep(FAULT_EVERY_S)
        minute += 1
        fault, target = rng.choice(FAULTS), rng.randrange(2)
        done = await asyncio.to_thread(inject, cluster, fault, target) is not None
        print(f"minute {minute}: {fault.value} of {target}{'' if done else ' (not injected)'}", flush=True)
        injected += done
        await asyncio.sleep(min(FROZEN_S, FAULT_EVERY_S / 3))
        cluster.reopen()
    return injected


async def _watch_usage(seconds: float) -> dict[str, Any]:
    """Usage of the processes that survive the whole run, after the warm-up and at the end."""
    await asyncio.sleep(WARM_UP * seconds)
    before = _usage()
    await asyncio.sleep((1 - WARM_UP) * seconds)
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
