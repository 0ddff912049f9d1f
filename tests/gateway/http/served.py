"""Serves scout through a real gateway, over gRPC and HTTP, in a thread of the test process."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.harness import Cluster, running

from outrider.proto.cluster_pb2 import EngineStatus
from outrider.workers.config import EngineConfig, resolve_model
from outrider.workers.engine.handle import EngineHandle
from outrider.workers.serving.hosts import start_engine

MODEL = "small"  # as the fake controller calls it


class _Engine:
    """The engine; `close` also ends its host."""

    def __init__(self) -> None:
        self._host = start_engine(EngineConfig(model="scout"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host.engine, name)

    def close(self) -> None:
        self._host.close()


@dataclass(frozen=True)
class Served:
    """The gateway's addresses. `engine`: to submit requests without the gateway."""

    url: str
    address: str
    engine: EngineHandle
    cluster: Cluster
    loop: asyncio.AbstractEventLoop

    def show(self, status: EngineStatus) -> None:
        """As the status of each replica from now on."""
        asyncio.run_coroutine_threadsafe(self.cluster.controller.show(status), self.loop).result()

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


def serve(folder: Path | None = None, **settings: Any) -> Iterator[Served]:
    """`settings`: of GatewaySettings."""
    ready, stop = threading.Event(), threading.Event()
    found: list[Served] = []

    async def run() -> None:
        async with running(folder or resolve_model("scout"), _Engine(), http_port=0, **settings) as cluster:
            url = f"http://127.0.0.1:{cluster.gateway.http_port}"
            found.append(Served(url, cluster.address, cluster.engine, cluster, asyncio.get_running_loop()))
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="served")
    thread.start()
    while not ready.wait(0.1):
        assert thread.is_alive()
    yield found[0]
    stop.set()
    thread.join()
