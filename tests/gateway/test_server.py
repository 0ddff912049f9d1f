"""The gateway as a process and as a server: health, reflection, metrics, logs, its end."""

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from fakes import FakeEngine
from gateway.harness import KEY, eventually, own_port, running, stopping, tokens
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from outrider.cluster.gateway.server import Gateway
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError

SOURCE = Path(__file__).resolve().parents[2] / "src"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
INFERENCE = "outrider.v1.InferenceService"


async def _health(channel: grpc.aio.Channel, service: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def _becomes(channel: grpc.aio.Channel, service: str, wanted: int) -> None:
    """Waits for it, as long as the test's own limit lasts."""
    while await _health(channel, service) != wanted:
        await asyncio.sleep(0.01)


def test_health_tells_alive_from_ready(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000), ready=False, drain_grace_s=5) as cluster:
            assert await _health(cluster.channel, "") == SERVING
            assert await _health(cluster.channel, INFERENCE) == NOT_SERVING

            await cluster.controller.publish(("r0", 1, cluster.leader_address))
            await eventually(lambda: cluster.gateway.ready)
            await _becomes(cluster.channel, INFERENCE, SERVING)

            call = cluster.inference.Generate(tokens(5))
            await call.read()
            drain = asyncio.create_task(cluster.gateway.drain())
            await _becomes(cluster.channel, INFERENCE, NOT_SERVING)
            assert await _health(cluster.channel, "") == SERVING
            call.cancel()
            await drain

    asyncio.run(scenario())


def test_a_model_that_is_not_on_the_gateways_machine_keeps_it_from_being_ready(model: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(model, ready=False, max_queue_wait_s=0) as cluster:
            cluster.controller.model_path = str(tmp_path / "nowhere")
            await cluster.controller.publish(("r0", 1, cluster.leader_address))
            refusal = ""
            while "does not know the model" not in refusal:  # until it has heard of the replica
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await cluster.events(tokens(5))
                refusal = caught.value.details() or ""

            cluster.controller.model_path = str(model)
            await eventually(lambda: cluster.gateway.ready)

    asyncio.run(scenario())


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_describes_the_services(model: Path, version: str) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            method = cluster.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            asked = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=INFERENCE),
            ]
            listed, file = [answer async for answer in method(iter(asked))]

            names = {service.name for service in listed.list_services_response.service}
            assert names >= {INFERENCE, "outrider.v1.ClusterService", "grpc.health.v1.Health"}
            assert names >= {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
            assert b"GenerateRequest" in b"".join(file.file_descriptor_response.file_descriptor_proto)

    asyncio.run(scenario())


def test_a_reflection_client_finds_the_generate_method(model: Path) -> None:
    def find(address: str) -> list[str]:
        with grpc.insecure_channel(address) as channel:
            pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            return [method.name for method in pool.FindServiceByName(INFERENCE).methods]

    async def scenario() -> None:
        async with running(model) as cluster:
            assert await asyncio.to_thread(find, cluster.address) == ["Generate"]

    asyncio.run(scenario())


def test_metrics_are_served_on_a_port_of_their_own(model: Path) -> None:
    def scrape(port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    async def scenario() -> None:
        async with running(model, metrics_port=0) as cluster:
            await cluster.events(tokens(5, stopping=stopping(max_tokens=3)))
            with pytest.raises(grpc.aio.AioRpcError):
                await cluster.events(tokens())

            lines = (await asyncio.to_thread(scrape, cluster.gateway.metrics_port)).splitlines()

            assert 'outrider_gateway_requests_total{status="ok"} 1.0' in lines
            assert 'outrider_gateway_requests_total{status="invalid_argument"} 1.0' in lines
            assert "outrider_gateway_time_to_first_token_seconds_count 1.0" in lines
            assert "outrider_gateway_e2e_request_latency_seconds_count 1.0" in lines
            assert "outrider_gateway_ready_replicas 1.0" in lines

            taken = GatewaySettings(
                controller=cluster.controller.address, port=0, metrics_port=cluster.gateway.metrics_port
            )
            second = Gateway(taken)
            with pytest.raises(OutriderError, match=f"metrics on 127.0.0.1:{cluster.gateway.metrics_port}"):
                await second.start()
            await second.close()

    asyncio.run(scenario())


def test_logs_carry_the_request_and_where_it_ran_but_never_its_text(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            prompt = cluster.inference.Generate(
                tokens(5, request_id="seen", stopping=stopping(max_tokens=3, stop=["secret"]))
            )
            async for _ in prompt:
                pass

    with caplog.at_level(logging.INFO, logger="outrider"):
        asyncio.run(scenario())

    lines = [json.loads(logs.JsonFormatter().format(record)) for record in caplog.records]
    ended = next(line for line in lines if line["event"] == "request ended")
    assert (ended["request_id"], ended["replica"], ended["generation"], ended["status"]) == ("seen", "r0", 1, "ok")
    assert (ended["prompt_tokens"], ended["completion_tokens"]) == (1, 3)
    assert "secret" not in json.dumps(lines)


def _start_process(controller: str, port: int, *options: str) -> "subprocess.Popen[str]":
    code = (
        "import sys; from outrider.workers.types import logs; from outrider.cluster.gateway.server import *;"
        "logs.configure();"
        f"status = run_gateway(GatewaySettings(controller={controller!r}, port={port}, {','.join(options)}));"
        "print([name for name in ('ray', 'torch') if name in sys.modules]); sys.exit(status)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def test_a_gateway_that_cannot_go_on_ends_and_says_why_in_one_line(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [5]}))
    (tmp_path / "key").write_text(KEY)

    async def scenario() -> None:
        async with running(model) as cluster:
            cluster.controller.model_path = str(tmp_path)
            command = [
                sys.executable,
                "-m",
                "outrider.cluster.cli",
                "gateway",
                "--port",
                "0",
                "--http-port",
                "0",
                "--controller",
            ]
            ended = await asyncio.to_thread(
                subprocess.run,
                [*command, cluster.controller.address, "--cluster-key-file", str(tmp_path / "key")],
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                capture_output=True,
                text=True,
                timeout=60,
            )

            assert ended.returncode == 1
            (line,) = ended.stderr.splitlines()
            assert line.startswith("error: the gateway cannot continue: AttributeError: 'int' object")

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stdin"])
def test_the_process_serves_then_drains_and_exits_0_without_ever_loading_ray_or_torch(model: Path, how: str) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            port = own_port()
            process = _start_process(
                cluster.controller.address,
                port,
                f"end_with_stdin={how == 'stdin'}",
                f"cluster_key={KEY!r}",
                f"http_port={own_port()}",  # whose server would handle signals itself
            )
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await asyncio.wait_for(channel.channel_ready(), 20)
                for _ in range(200):
                    if await _health(channel, INFERENCE) == SERVING:
                        break
                    await asyncio.sleep(0.02)
                cluster.channel, own = channel, cluster.channel
                call = cluster.inference.Generate(tokens(5, stopping=stopping(max_tokens=300)))
                assert (await call.read()).HasField("accepted")
                if how == "stdin":
                    assert process.stdin is not None
                    process.stdin.close()
                    process.stdin = None
                else:
                    process.send_signal(getattr(signal, how))
                count = 0
                while (event := await call.read()) is not grpc.aio.EOF:
                    count += len(event.output.token_ids)
                cluster.channel = own
            output, errors = await asyncio.to_thread(process.communicate, timeout=60)

            assert (process.returncode, output.strip(), count) == (0, "[]", 300)
            events = [json.loads(line)["event"] for line in errors.splitlines()]
            assert events[0] == "gateway listens"
            assert events[-1] == "gateway stopped"

    asyncio.run(scenario())
