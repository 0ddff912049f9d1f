"""Many streams over HTTP beside as many over gRPC: gaps between a stream's messages, and what is left when all ended.

256 clients send one request after another, over HTTP (SSE) and over gRPC in turn. Of three requests one is left
half-way, as by a client that disconnects. Afterwards nothing may be left of them: no request at the gateway or in the
engine, no open file.

`python benchmarks/serving/http_load.py [--streams 256] [--seconds 120] [--turns 4] [--json FILE]`
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.prompts import prompts
from benchmarks.common.results import record
from benchmarks.serving.served_model import Served
from outrider.cluster.api.generation import Output
from outrider.cluster.client.async_client import AsyncClient
from outrider.cluster.gateway_process import free_port

SETTLE_S = 15.0
LEFT = ("outrider_gateway_live_requests", "vllm:num_requests_running", "vllm:num_requests_waiting")
Stream = Callable[[dict[str, Any]], AsyncGenerator[int, None]]  # a request to the number of tokens of each message


@dataclass
class Counts:
    """Of one protocol. Gaps are seconds between messages of one stream, first tokens seconds after the request."""

    gaps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    finished: int = 0
    left: int = 0
    tokens: int = 0

    def summary(self) -> dict[str, float]:
        counted = {"finished": self.finished, "left_early": self.left, "tokens": self.tokens}
        timed = {
            f"{name}_p{percent}_ms": round(1e3 * float(np.percentile(values, percent)), 1)
            for name, values in (("gap", self.gaps), ("first_token", self.first))
            for percent in (50, 99)
        }
        return {**counted, **timed}


def over_http(session: aiohttp.ClientSession, url: str) -> Stream:
    async def stream(request: dict[str, Any]) -> AsyncGenerator[int, None]:
        body = {**request, "stream": True, "return_token_ids": True}
        async with session.post(f"{url}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield len(json.loads(line[6:])["choices"][0]["token_ids"])

    return stream


def over_grpc(client: AsyncClient) -> Stream:
    async def stream(request: dict[str, Any]) -> AsyncGenerator[int, None]:
        async with aclosing(client.stream(**request)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Output):
                    yield len(event.token_ids)

    return stream


async def one_request(stream: Stream, dice: random.Random, texts: list[str], counts: Counts) -> None:
    length, leaves = dice.randint(16, 64), dice.random() < 1 / 3
    request = {"prompt": dice.choice(texts), "max_tokens": length, "ignore_eos": True, "temperature": 0.8}
    received, before = 0, time.perf_counter()
    async with aclosing(stream(request)) as messages:
        async for tokens in messages:
            now = time.perf_counter()
            (counts.gaps if received else counts.first).append(now - before)
            received, before = received + tokens, now
            if leaves and received >= length // 2:
                counts.left += 1
                break
        else:
            assert received == length, f"{received} of {length} tokens came"
            counts.finished += 1
    counts.tokens += received


async def load(stream: Stream, streams: int, seconds: float, seed: int, counts: Counts) -> None:
    texts, until = [text[:60] for text in prompts("code", 64)], time.monotonic() + seconds

    async def client(number: int) -> None:
        dice = random.Random(f"{seed} {number}")
        while time.monotonic() < until:
            await one_request(stream, dice, texts, counts)

    await asyncio.gather(*(client(number) for number in range(streams)))


async def left(url: str, gateway: psutil.Process, files: int) -> tuple[dict[str, float], int]:
    """Requests that the gateway and engine still have, and the gateway's open files.

    Returns once there are no requests and no more than `files`, or when SETTLE_S are over.
    """
    until = time.monotonic() + SETTLE_S
    while True:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        found = {one.name: one.value for family in families for one in family.samples if one.name in LEFT}
        await asyncio.sleep(0.5)  # for the connection of this question to be closed
        if (not any(found.values()) and gateway.num_fds() <= files) or time.monotonic() > until:
            return found, gateway.num_fds()


def gateway_process(served: Served) -> psutil.Process:
    children = psutil.Process(served.process.pid).children(recursive=True)
    (found,) = [one for one in children if "gateway" in one.cmdline()]
    return found


async def measure(served: Served, url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    counts, gateway = {"http": Counts(), "grpc": Counts()}, gateway_process(served)
    share = arguments.seconds / arguments.turns

    async def turn(number: int, seconds: float, into: dict[str, Counts]) -> None:
        timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            ways = {"http": over_http(session, url), "grpc": over_grpc(client)}
            for name in list(ways) if number % 2 else reversed(ways):
                await load(ways[name], arguments.streams, seconds, number, into[name])

    async with AsyncClient(served.address) as client:
        await turn(-1, 3.0, {"http": Counts(), "grpc": Counts()})  # warms up
        _, before = await left(url, gateway, 0)
        remaining = []
        for number in range(arguments.turns):
            await turn(number, share, counts)
            remaining.append(await left(url, gateway, before))
    summaries = {name: one.summary() for name, one in counts.items()}
    return {
        **summaries,
        "gap_p99_http_over_grpc": round(summaries["http"]["gap_p99_ms"] / summaries["grpc"]["gap_p99_ms"], 3),
        "requests_left": max(sum(found.values()) for found, _ in remaining),
        "open_files": [before, *(files for _, files in remaining)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=120.0, help="of load over each protocol")
    parser.add_argument("--turns", type=int, default=4, help="that each protocol's seconds are divided into")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    port = free_port("127.0.0.1")
    options = ["--http-port", str(port), "--set", f"max_num_seqs={arguments.streams}"]
    with Served("http-load", *options) as served:
        result = asyncio.run(measure(served, f"http://127.0.0.1:{port}", arguments))
    result = record(f"python benchmarks/serving/http_load.py {' '.join(sys.argv[1:])}".strip(), result)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
