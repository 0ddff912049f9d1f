"""A whole cluster on loopback but for the model: fake engine, real leader service, fake controller, real gateway."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from fakes import FakeController, FakeEngine

from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway.requests.limits import RequestLimits
from outrider.cluster.gateway.server import Gateway
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.proto import cluster_pb2_grpc, inference_pb2, inference_pb2_grpc
from outrider.workers.serving.rpc.cluster_key import draw_key
from outrider.workers.serving.rpc.service import EngineServer

pb = inference_pb2
KEY = draw_key()


@dataclass
class Cluster:
    """What a test holds."""

    engine: FakeEngine
    leader: EngineServer
    leader_address: str
    controller: FakeController
    gateway: Gateway  # a test that puts another in its place has closed the first
    channel: grpc.aio.Channel

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def cluster(self) -> cluster_pb2_grpc.ClusterServiceStub:
        return cluster_pb2_grpc.ClusterServiceStub(self.channel)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gateway.port}"

    async def events(self, request: pb.GenerateRequest, **options: object) -> list[pb.GenerateResponse]:
        return [event async for event in self.inference.Generate(request, **options)]


def own_port() -> int:
    """A free port of loopback below those that the system gives to whoever asks for any, so nobody else gets it."""
    while True:
        port = random.randrange(12_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.asynccontextmanager
async def running(
    model: Path,
    engine: FakeEngine | None = None,
    *,
    ready: bool = True,
    http_port: int | None = None,
    access: AccessSettings = AccessSettings(),  # noqa: B008  # frozen
    limits: RequestLimits = RequestLimits(),  # noqa: B008  # frozen
    **settings: object,
) -> AsyncIterator[Cluster]:
    """A cluster that takes requests, unless `ready` is False. `http_port`: 0 for any free one, None for no HTTP.
    `settings`: GatewaySettings' own."""
    engine = engine or FakeEngine()
    leader = EngineServer(engine, key=KEY)
    leader_address = f"127.0.0.1:{leader.start()}"
    controller = FakeController(str(model), KEY)
    await controller.start()
    given = {**asdict(access), **asdict(limits), "port": 0, "cluster_key": KEY, **settings}
    given["http_port"] = 0 if http_port is None else http_port or own_port()
    gateway = Gateway(GatewaySettings(controller=controller.address, **given))
    await gateway.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=[("grpc.use_local_subchannel_pool", 1)])
    cluster = Cluster(engine, leader, leader_address, controller, gateway, channel)
    try:
        if ready:
            await controller.publish(("r0", 1, leader_address))
            await eventually(lambda: gateway.ready)
        yield cluster
    finally:
        await channel.close()
        await cluster.gateway.close()
        await controller.stop()
        await asyncio.to_thread(leader.stop)
        engine.close()


async def rest(call: "grpc.aio.UnaryStreamCall") -> list[pb.GenerateResponse]:
    """The events that a call has not given yet; AioRpcError if it ends with another status than OK."""
    events: list[pb.GenerateResponse] = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits until it holds."""
    until = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < until, "did not come true in time"
        await asyncio.sleep(0.005)


def tokens(*ids: int, **fields: object) -> pb.GenerateRequest:
    """A request with a prompt of token ids."""
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), **fields)


def stopping(**fields: object) -> pb.StoppingParameters:
    return pb.StoppingParameters(**fields)
