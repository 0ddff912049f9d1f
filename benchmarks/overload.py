"""A served scout under more requests than it can do, before clients that never read, and under mutated requests.

    .venv/bin/python benchmarks/overload.py [--seconds 60] [--times 10]   # overload, and two tokens at 100:1
    .venv/bin/python benchmarks/overload.py --never-read 1024
    .venv/bin/python benchmarks/overload.py --fuzz 20000 [--seed 0]

Exits 1 where a promise is not kept. Requests arrive at random, at a rate; none is retried.
"""

import argparse
import asyncio
import contextlib
import io
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from common import prompts, save
from mutations import mutated
from served import Served

from outrider import AsyncClient, ClientSecurity
from outrider.cluster.api.generation import Output
from outrider.cluster.cli.token import run_token
from outrider.proto import inference_pb2 as pb
from outrider.proto import inference_pb2_grpc

SEATS = 16  # sequences that the replica runs at once
TOKENS = 192  # of each answer
CACHE_BYTES = 256 * 2**20  # so that it is all in use before memory is looked at
QUEUE_WAIT_S = 0.05  # no request waits for another to end: that takes 0.2 s on average, and a second at times
SETTLE_S = 10.0  # before two tokens are counted: the first answers take 4 s, and all begin empty
CHANNELS = 8  # of a token: no more than 100 requests are on one at once
FUZZ_STATUSES = ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
METHOD = "/outrider.v1.InferenceService/Generate"


@dataclass
class Phase:
    """What the clients of one rate saw. Times are in seconds."""

    seconds: float
    first_token: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)  # within the phase, by token
    refusals: Counter[str] = field(default_factory=Counter)  # by token

    def figures(self) -> dict[str, Any]:
        return {
            "done_per_second": round(sum(self.done.values()) / self.seconds, 2),
            "first_token_p50_s": percentile(self.first_token, 0.5),
            "first_token_p99_s": percentile(self.first_token, 0.99),
            "refused_p99_ms": round(1000 * percentile(self.refused, 0.99), 1),
            "statuses": dict(self.statuses),
        }


def percentile(values: list[float], part: float) -> float:
    return round(sorted(values)[int(part * (len(values) - 1))], 4) if values else 0.0


class Clients:
    """Of one token."""

    def __init__(self, address: str, name: str, token: str) -> None:
        self.name = name
        self.metadata = (("authorization", f"Bearer {token}"),)
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        self._channels = [grpc.aio.insecure_channel(address, options) for _ in range(CHANNELS)]
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(one) for one in self._channels]
        self._texts, self._dice = prompts("code", 20) + prompts("prose", 20), random.Random(name)

    async def ask(self, phase: Phase, until: float, since: float = 0.0) -> None:
        """Its answer counts as done if it ends between the two."""
        stub, began, first = self._dice.choice(self._stubs), time.monotonic(), None
        request = pb.GenerateRequest(
            prompt=self._dice.choice(self._texts)[:200],
            stopping=pb.StoppingParameters(max_tokens=TOKENS, ignore_eos=True),
        )
        try:
            async for event in stub.Generate(request, metadata=self.metadata):
                if first is None and event.HasField("output"):
                    first = time.monotonic() - began
        except grpc.aio.AioRpcError as error:
            phase.statuses[error.code().name] += 1
            phase.refusals[self.name] += 1
            phase.refused.append(time.monotonic() - began)
            return
        phase.statuses["OK"] += 1
        phase.first_token.append(first or 0.0)
        phase.done[self.name] += since <= time.monotonic() < until

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


async def at_rates(rates: dict[Clients, float], seconds: float, settle_s: float = 0.0) -> Phase:
    """Requests that arrive by chance, so many a second of each token, for `seconds` after the first `settle_s`."""
    phase, since = Phase(seconds), time.monotonic() + settle_s
    until = since + seconds
    tasks: set[asyncio.Task[None]] = set()

    async def arrive(clients: Clients, rate: float) -> None:
        dice, due = random.Random(clients.name), time.monotonic()
        while (due := due + dice.expovariate(rate)) < until:
            await asyncio.sleep(due - time.monotonic())
            tasks.add(task := asyncio.create_task(clients.ask(phase, until, since)))
            task.add_done_callback(tasks.discard)

    await asyncio.gather(*(arrive(clients, rate) for clients, rate in rates.items()))
    await asyncio.gather(*tasks)
    return phase


async def at_once(clients: Clients, count: int, seconds: float) -> Phase:
    """As many requests all the time: the peak."""
    phase, until = Phase(seconds), time.monotonic() + seconds

    async def one() -> None:
        while time.monotonic() < until:
            refused = len(phase.refused)
            await clients.ask(phase, until)
            if len(phase.refused) > refused:
                await asyncio.sleep(0.2)

    await asyncio.gather(*(one() for _ in range(count)))
    return phase


class Cluster:
    """A served scout with two tokens, and what its processes hold."""

    def __init__(self, served: Served, tokens: dict[str, str]) -> None:
        self.address, self.process, self.tokens = served.address, served.process, tokens

    def clients(self, name: str) -> Clients:
        return Clients(self.address, name, self.tokens[name])

    def client(self, name: str) -> AsyncClient:
        return AsyncClient(self.address, ClientSecurity(token=self.tokens[name]), patience_s=0)

    def memory_mb(self) -> dict[str, float]:
        """Of the gateway and the ranks."""
        found: Counter[str] = Counter()
        for process in _children(self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if "outrider.cluster.cli" in line and " gateway " in line:
                    found["gateway"] += process.memory_info().rss
                elif "ray::" in line and "Rank" in line:
                    found["rank"] += process.memory_info().rss
        return {name: round(value / 1e6, 1) for name, value in found.items()}

    def gateway_pid(self) -> int:
        return next(p.pid for p in _children(self.process) if " gateway " in " ".join(p.cmdline()))


def _children(server: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(server.pid).children(recursive=True)


@contextlib.contextmanager
def a_cluster(*options: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens"
        tokens = {"heavy": _token("heavy", file), "light": _token("light", file, "admin")}
        settings = ("--set", f"max_num_seqs={SEATS}", "--set", f"kv_cache_memory_bytes={CACHE_BYTES}")
        settings += ("--auth-token-file", str(file))
        with Served("overload", *settings, *options) as served:
            yield Cluster(served, tokens)


def _token(name: str, file: Path, *roles: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_token(name, ["inference", *roles], file)
    return said.getvalue().split()[-1]


async def overload(cluster: Cluster, seconds: float, times: float) -> tuple[dict[str, Any], list[str]]:
    heavy, light = cluster.clients("heavy"), cluster.clients("light")
    await at_once(heavy, SEATS + 2, 20)
    peak = await at_once(heavy, SEATS + 2, 20)
    rate = sum(peak.done.values()) / peak.seconds
    calm = await at_rates({heavy: 0.9 * rate}, 30)
    before = cluster.memory_mb()
    over = await at_rates({heavy: times * rate}, seconds)
    after = cluster.memory_mb()
    shared = await at_rates({heavy: 60 * rate, light: 0.6 * rate}, 30, SETTLE_S)
    await heavy.close()
    await light.close()
    figures = {
        "peak_per_second": round(rate, 2),
        "at_0.9": calm.figures(),
        f"at_{times:g}": over.figures(),
        "goodput_over_peak": round(sum(over.done.values()) / seconds / rate, 3),
        "first_token_p99_over_0.9": round(percentile(over.first_token, 0.99) / percentile(calm.first_token, 0.99), 2),
        "memory_mb": {"before": before, "after": after},
        "memory_growth": max(round(after[name] / before[name] - 1, 3) for name in before),
        "two_tokens": {**shared.figures(), "done": dict(shared.done), "refused": dict(shared.refusals)},
        "light_share": round(shared.done["light"] / max(1, sum(shared.done.values())), 3),
    }
    broken = [
        name
        for name, kept in {
            "refused p99 <= 50 ms": figures[f"at_{times:g}"]["refused_p99_ms"] <= 50,
            "first token p99 <= 2 x that at 0.9": figures["first_token_p99_over_0.9"] <= 2,
            "goodput >= 0.9 of peak": figures["goodput_over_peak"] >= 0.9,
            "memory <= +10 %": figures["memory_growth"] <= 0.1,
            "light token >= 45 %": figures["light_share"] >= 0.45,
            "only OK and RESOURCE_EXHAUSTED": set(over.statuses) <= {"OK", "RESOURCE_EXHAUSTED"},
        }.items()
        if not kept
    ]
    return figures, broken


async def never_read(cluster: Cluster, count: int) -> tuple[dict[str, Any], list[str]]:
    """`count` clients of one token, each with a connection of its own, that send a request and read nothing of the
    answer; then one of another token."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0))
    metadata = (("authorization", f"Bearer {cluster.tokens['heavy']}"),)
    request = pb.GenerateRequest(
        prompt="def main():",
        stopping=pb.StoppingParameters(max_tokens=3000, ignore_eos=True),
        response=pb.ResponseOptions(logprobs=20),
    )
    channels = [grpc.aio.insecure_channel(cluster.address, options) for _ in range(count)]
    calls = [
        inference_pb2_grpc.InferenceServiceStub(channel).Generate(request, metadata=metadata) for channel in channels
    ]
    began, served = time.monotonic(), list[float]()
    async with cluster.client("light") as client:
        while time.monotonic() < began + 40:
            asked = time.monotonic()
            await client.generate("import", max_tokens=1)
            served.append(time.monotonic() - asked)
            await asyncio.sleep(1.0)
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


async def fuzz(cluster: Cluster, count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Requests that are mutated, beside a stream that is innocent."""
    warm = cluster.clients("light")
    await at_once(warm, SEATS, 20)
    await warm.close()
    gateway, before = cluster.gateway_pid(), cluster.memory_mb()
    statuses, examples, gaps = Counter[str](), dict[str, str](), list[float]()
    stopped = asyncio.Event()
    watch = asyncio.create_task(_innocent(cluster, gaps, stopped))
    dice, heavy = random.Random(seed), cluster.clients("heavy")
    channel = grpc.aio.insecure_channel(cluster.address, (("grpc.use_local_subchannel_pool", 1),))
    generate = channel.unary_stream(
        METHOD, request_serializer=bytes, response_deserializer=pb.GenerateResponse.FromString
    )
    room = asyncio.Semaphore(8)
    await asyncio.sleep(10)
    alone, began = list(gaps), time.monotonic()
    gaps.clear()

    async def one(message: bytes) -> None:
        async with room:
            call = generate(message, metadata=heavy.metadata, timeout=30)
            try:
                for _ in range(3):
                    if await call.read() is grpc.aio.EOF:
                        break
                status = "OK"
                call.cancel()
            except grpc.aio.AioRpcError as error:
                status = error.code().name
                examples.setdefault(status, f"{error.details()} <- {message[:300]!r}")
            statuses[status] += 1

    for first in range(0, count, 500):
        await asyncio.gather(*(one(mutated(dice)) for _ in range(min(500, count - first))))
    took_s = time.monotonic() - began
    async with cluster.client("light") as client:
        gateway_now = (await client.status()).gateway
    stopped.set()
    await watch
    after = cluster.memory_mb()
    figures = {
        "requests": sum(statuses.values()),
        "per_second": round(sum(statuses.values()) / took_s),
        "seed": seed,
        "statuses": dict(statuses),
        "examples": {name: text[:500] for name, text in examples.items() if name not in FUZZ_STATUSES},
        "longest_gap_ms": round(1000 * max(gaps)),
        "longest_gap_alone_ms": round(1000 * max(alone)),
        "gateways_event_loop_late_ms": round(1000 * gateway_now.longest_loop_lag_s) if gateway_now else None,
        "gap_p99_ms": round(1000 * percentile(gaps, 0.99)),
        "memory_mb": {"before": before, "after": after},
    }
    growth = max(after[name] - before[name] for name in before)
    kept = {
        "no crash": cluster.gateway_pid() == gateway,
        "only INVALID_ARGUMENT or RESOURCE_EXHAUSTED": set(statuses) <= set(FUZZ_STATUSES),
        "longest gap <= 100 ms": figures["longest_gap_ms"] <= 100,
        "memory <= +200 MB": growth <= 200,
    }
    await channel.close()
    await heavy.close()
    return figures, [name for name, good in kept.items() if not good]


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
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--never-read", type=int, metavar="CLIENTS")
    parser.add_argument("--fuzz", type=int, metavar="REQUESTS")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    runs: tuple[str, tuple[str, ...], Callable[[Cluster], Any]]
    if args.never_read:
        runs = ("overload-never-read", (), lambda cluster: never_read(cluster, args.never_read))
    elif args.fuzz:
        runs = ("overload-fuzz", (), lambda cluster: fuzz(cluster, args.fuzz, args.seed))
    else:
        wait = ("--max-queue-wait-s", str(QUEUE_WAIT_S))
        runs = ("overload", wait, lambda cluster: overload(cluster, args.seconds, args.times))
    name, options, run = runs
    with a_cluster(*options) as cluster:
        figures, broken = asyncio.run(run(cluster))
    print(figures)
    print("written to", save(name, f"benchmarks/overload.py {' '.join(sys.argv[1:])}".strip(), figures))
    for promise in broken:
        print("NOT KEPT:", promise)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
