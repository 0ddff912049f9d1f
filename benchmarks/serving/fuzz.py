"""Mutated requests to a served scout, beside a stream that is innocent: crashes, statuses, gaps of that stream, memory.

    python benchmarks/serving/fuzz.py [--requests 20000] [--minutes 10] [--seed 0]

Exits 1 where a promise is not kept.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.serving.mutations import mutated
from benchmarks.serving.overload_cluster import SEATS, Cluster, a_cluster, at_once, percentile, told
from outrider.cluster.api.generation import Output
from outrider.proto import inference_pb2 as pb

STATUSES = ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
METHOD = "/outrider.v1.InferenceService/Generate"
AT_ONCE, BATCH = 8, 500
ALONE_S = 10.0  # in which the innocent stream is watched without mutated requests
READ_MESSAGES = 3  # of an answer; then the call is cancelled


@dataclass
class Outcome:
    """What became of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # of each status
    took_s: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            "requests": self.statuses.total(),
            "per_second": round(self.statuses.total() / self.took_s),
            "statuses": dict(self.statuses),
            "examples": {name: text[:500] for name, text in self.examples.items() if name not in STATUSES},
        }


async def fuzz(cluster: Cluster, count: int, seed: int, minutes: float | None) -> tuple[dict[str, Any], list[str]]:
    await _warm_up(cluster)
    gateway, before = cluster.gateway_pid(), cluster.memory_mb()
    gaps, stopped = list[float](), asyncio.Event()
    watch = asyncio.create_task(_innocent(cluster, gaps, stopped))
    await asyncio.sleep(ALONE_S)
    alone = list(gaps)
    gaps.clear()
    outcome = await _send_all(cluster, count, seed, minutes)
    async with cluster.client("light") as client:
        status = (await client.status()).gateway
    stopped.set()
    await watch
    after = cluster.memory_mb()
    figures = {
        "seed": seed,
        **outcome.figures(),
        "longest_gap_ms": round(1000 * max(gaps)),
        "gaps_over_100_ms": sum(gap > 0.1 for gap in gaps),
        "gaps": len(gaps),
        "longest_gap_alone_ms": round(1000 * max(alone)),
        "gap_p99_ms": round(1000 * percentile(gaps, 0.99)),
        "gap_p99_alone_ms": round(1000 * percentile(alone, 0.99)),
        "gateways_event_loop_late_ms": round(1000 * status.longest_loop_lag_s) if status else None,
        "memory_mb": {"before": before, "after": after},
    }
    kept = {
        "no crash": cluster.gateway_pid() == gateway,
        "only INVALID_ARGUMENT or RESOURCE_EXHAUSTED": set(outcome.statuses) <= set(STATUSES),
        "longest gap <= 100 ms": figures["longest_gap_ms"] <= 100,
        "memory <= +200 MB": max(after[name] - before[name] for name in before) <= 200,
    }
    return figures, [name for name, good in kept.items() if not good]


async def _warm_up(cluster: Cluster) -> None:
    clients = cluster.clients("light")
    await at_once(clients, SEATS, 20)
    await clients.close()


async def _send_all(cluster: Cluster, count: int, seed: int, minutes: float | None) -> Outcome:
    """`count` requests, or as many as go in the time, AT_ONCE at a time."""
    outcome, dice, began = Outcome(), random.Random(seed), time.monotonic()
    metadata, room = cluster.metadata("heavy"), asyncio.Semaphore(AT_ONCE)
    async with grpc.aio.insecure_channel(cluster.address, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        generate = channel.unary_stream(
            METHOD, request_serializer=bytes, response_deserializer=pb.GenerateResponse.FromString
        )

        async def send(message: bytes) -> None:
            async with room:
                await _send(generate(message, metadata=metadata, timeout=30), message, outcome)

        for first in range(0, count, BATCH):
            if minutes is not None and time.monotonic() > began + 60 * minutes:
                break
            await asyncio.gather(*(send(mutated(dice)) for _ in range(min(BATCH, count - first))))
    outcome.took_s = time.monotonic() - began
    return outcome


async def _send(call: Any, message: bytes, outcome: Outcome) -> None:
    try:
        for _ in range(READ_MESSAGES):
            if await call.read() is grpc.aio.EOF:
                break
        status = "OK"
        call.cancel()
    except grpc.aio.AioRpcError as error:
        status = error.code().name
        outcome.examples.setdefault(status, f"{error.details()} <- {message[:300]!r}")
    outcome.statuses[status] += 1


async def _innocent(cluster: Cluster, gaps: list[float], stopped: asyncio.Event) -> None:
    """Streams one after the other; the gaps between their messages."""
    async with cluster.client("light") as client:
        while not stopped.is_set():
            last = None
            async for event in _until(client.stream("import os", max_tokens=2000, ignore_eos=True), stopped):
                now = time.monotonic()
                if isinstance(event, Output):
                    gaps += [now - last] if last is not None else []
                    last = now


async def _until(events: AsyncIterator[Any], stopped: asyncio.Event) -> AsyncIterator[Any]:
    async for event in events:
        if stopped.is_set():
            await events.aclose()  # type: ignore[attr-defined]  # an async generator
            return
        yield event


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=None, help="Send no more after this many minutes.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with a_cluster() as cluster:
        figures, broken = asyncio.run(fuzz(cluster, args.requests, args.seed, args.minutes))
    return told("overload-fuzz", figures, broken)


if __name__ == "__main__":
    sys.exit(main())
