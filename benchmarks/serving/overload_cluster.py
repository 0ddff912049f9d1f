"""A served scout with two tokens, clients of each, and what its processes hold."""

import asyncio
import contextlib
import io
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.common.prompts import prompts
from benchmarks.common.results import save
from benchmarks.serving.served_model import Served
from outrider import AsyncClient, ClientSecurity
from outrider.cluster.cli.commands.token import run_token
from outrider.proto import inference_pb2 as pb
from outrider.proto import inference_pb2_grpc

SEATS = 16  # sequences that the replica runs at once
TOKENS = 192  # of each answer
CACHE_BYTES = 256 * 2**20  # so that it is all in use before memory is looked at
CHANNELS = 8  # of a token: no more than 100 requests are on one at once


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

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        """Of a token's calls."""
        return (("authorization", f"Bearer {self.tokens[name]}"),)

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
def a_cluster(*options: str) -> Iterator[Cluster]:
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


def told(name: str, figures: dict[str, Any], broken: list[str]) -> int:
    """Prints and saves the figures, and says which promises were not kept: the exit status."""
    script = Path(sys.argv[0]).resolve().relative_to(Path(__file__).parents[2])
    command = " ".join([str(script), *sys.argv[1:]])
    print(figures)
    print("written to", save(name, command, figures))
    for promise in broken:
        print("NOT KEPT:", promise)
    return 1 if broken else 0
