"""Clients that send requests to a served scout and never read the answers, and how soon a new one is served.

    python benchmarks/serving/slow_readers.py [--clients 1024]

Exits 1 where a promise is not kept.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import grpc

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.serving.overload_cluster import Cluster, a_cluster, percentile, told
from outrider.proto import inference_pb2 as pb
from outrider.proto import inference_pb2_grpc

WATCHED_S = 40.0


async def never_read(cluster: Cluster, count: int) -> tuple[dict[str, Any], list[str]]:
    """`count` clients of one token, each with a connection of its own; then one of another token."""
    channels, calls = _unread_calls(cluster, count)
    served = await _served_s(cluster)
    free_at = time.monotonic()
    async with cluster.client("heavy") as client:
        with contextlib.suppress(Exception):
            await client.generate("import", max_tokens=1)
    freed_s = time.monotonic() - free_at
    for call in calls:
        call.cancel()
    for channel in channels:
        await channel.close()
    figures = {
        "clients": count,
        "served_s": {"p50": percentile(served, 0.5), "most": round(max(served), 3), "asked": len(served)},
        "same_token_served_after_40_s": round(freed_s, 3),
        "memory_mb": cluster.memory_mb(),
    }
    return figures, ["a new client is served within 1 s"] if max(served) > 1 else []


def _unread_calls(cluster: Cluster, count: int) -> tuple[list[grpc.aio.Channel], list[Any]]:
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0))
    request = pb.GenerateRequest(
        prompt="def main():",
        stopping=pb.StoppingParameters(max_tokens=3000, ignore_eos=True),
        response=pb.ResponseOptions(logprobs=20),
    )
    channels = [grpc.aio.insecure_channel(cluster.address, options) for _ in range(count)]
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    return channels, [stub.Generate(request, metadata=cluster.metadata("heavy")) for stub in stubs]


async def _served_s(cluster: Cluster) -> list[float]:
    """How long a new client takes to be served, asked every second for WATCHED_S."""
    began, served = time.monotonic(), list[float]()
    async with cluster.client("light") as client:
        while time.monotonic() < began + WATCHED_S:
            asked = time.monotonic()
            await client.generate("import", max_tokens=1)
            served.append(time.monotonic() - asked)
            await asyncio.sleep(1.0)
    return served


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1024)
    args = parser.parse_args()
    with a_cluster() as cluster:
        figures, broken = asyncio.run(never_read(cluster, args.clients))
    return told("overload-never-read", figures, broken)


if __name__ == "__main__":
    sys.exit(main())
