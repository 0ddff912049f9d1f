"""Who gets in by a bearer token, and who does not: on every method that a gateway offers."""

import asyncio
import hashlib
import json
import logging
from pathlib import Path

import grpc
import pytest
from fakes import FakeEngine
from gateway.every_rpc import GATEWAY, REFLECTION, statuses
from gateway.harness import eventually, pb, rest, running, stopping, tokens
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider import AsyncClient, ClientSecurity
from outrider.cluster.api.errors import NotAllowedError
from outrider.cluster.gateway.access.auth import Authenticator, Role, caller_of, parse_callers, roles_for
from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway.server import Gateway
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError

Code = grpc.StatusCode
TEXT, BOSS, BOTH = "or-text-token", "or-boss-token", "or-both-token"


def line(name: str, roles: str, token: str) -> str:
    return f"{name} {roles} sha256:{hashlib.sha256(token.encode()).hexdigest()}\n"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(
        "# who may call\n\n"
        + line("writer", "inference", TEXT)
        + line("boss", "admin", BOSS)
        + line("both", "admin,inference", BOTH)
    )
    return file


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer or-unknown"),),
        (("authorization", "Bearer "),),
        (("authorization", BOTH),),
        (("authorization", f"Basic {BOTH}"),),
        (("authorization", f"Bearer {hashlib.sha256(BOTH.encode()).hexdigest()}"),),
        (("authorization", "Bearer or-unknown"), ("authorization", f"Bearer {BOTH}")),
        (("outrider-cluster-key", BOTH),),
    ],
    ids=["none", "wrong", "empty", "no scheme", "other scheme", "the hash itself", "wrong first", "other header"],
)
def test_without_a_valid_token_no_method_answers(
    model: Path, token_file: Path, metadata: tuple[tuple[str, str], ...]
) -> None:
    async def scenario() -> None:
        async with running(model, access=AccessSettings(auth_token_file=token_file)) as cluster:
            got = await statuses(cluster.address, (*GATEWAY, "/no.such/Method"), ClientSecurity(), metadata)
            assert set(got.values()) == {Code.UNAUTHENTICATED}, got
            assert cluster.engine.submitted == []

    asyncio.run(scenario())


def test_a_token_opens_the_methods_of_its_role_and_no_others(model: Path, token_file: Path) -> None:
    generate, model_rpc = "/outrider.v1.InferenceService/Generate", "/outrider.v1.ClusterService/GetModel"
    admin_only = [name for name in GATEWAY if "ClusterService" in name and name != model_rpc]

    async def scenario() -> None:
        async with running(model, access=AccessSettings(auth_token_file=token_file)) as cluster:
            async with AsyncClient(cluster.address, ClientSecurity(token=TEXT)) as writer:
                assert (await writer.generate(token_ids=[5], max_tokens=3)).finish_reason == "length"
                assert (await writer.model()).fingerprint == "feedbeef"
                with pytest.raises(NotAllowedError, match=r"writer may not call .*GetStatus: it needs the role admin"):
                    await writer.status()
            async with AsyncClient(cluster.address, ClientSecurity(token=BOSS)) as boss:
                assert (await boss.status()).name == "test"
                assert (await boss.model()).fingerprint == "feedbeef"
                with pytest.raises(NotAllowedError, match="needs the role inference"):
                    await boss.generate(token_ids=[5], max_tokens=3)
            async with AsyncClient(cluster.address, ClientSecurity(token=BOTH)) as both:
                await both.generate(token_ids=[5], max_tokens=3)
                await both.status()

            refused = await statuses(cluster.address, admin_only, ClientSecurity(token=TEXT))
            assert set(refused.values()) == {Code.PERMISSION_DENIED}
            assert await statuses(cluster.address, [generate], ClientSecurity(token=BOSS)) == {
                generate: Code.PERMISSION_DENIED
            }

    asyncio.run(scenario())


def test_every_method_that_is_not_listed_is_an_administrators() -> None:
    assert roles_for("/outrider.v1.ClusterService/SomethingNew") == {Role.ADMIN}
    assert roles_for("/some.other.Service/Method") == {Role.ADMIN}
    assert all(roles_for(method) == set(Role) for method in REFLECTION)


def test_health_needs_no_token(model: Path, token_file: Path) -> None:
    async def scenario() -> None:
        async with running(model, access=AccessSettings(auth_token_file=token_file)) as cluster:
            answer = await health_pb2_grpc.HealthStub(cluster.channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    asyncio.run(scenario())


def test_a_changed_token_file_takes_effect_and_a_broken_one_does_not(model: Path, token_file: Path) -> None:
    async def scenario() -> None:
        async with running(model, access=AccessSettings(auth_token_file=token_file)) as cluster:

            async def may(token: str) -> bool:
                async with AsyncClient(cluster.address, ClientSecurity(token=token)) as client:
                    try:
                        await client.model()
                    except NotAllowedError:
                        return False
                    return True

            assert await may(TEXT)

            token_file.write_text(line("new", "inference", "or-new-token"))
            assert await may("or-new-token")
            assert not await may(TEXT)

            token_file.write_text("nonsense")
            assert await may("or-new-token")

            token_file.write_text(line("new", "inference", "or-new-token"))
            token_file.unlink()
            assert not await may("or-new-token")

            token_file.write_text(line("new", "inference", "or-new-token"))
            assert await may("or-new-token")
            token_file.write_text("# no token\n")
            assert not await may("or-new-token")

            token_file.write_text(line("writer", "inference", TEXT))
            assert await may(TEXT)
            assert not await may("or-new-token")

    asyncio.run(scenario())


def test_the_log_says_who_made_an_administrators_call(
    model: Path, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(model, access=AccessSettings(auth_token_file=token_file)) as cluster:
            async with AsyncClient(cluster.address, ClientSecurity(token=BOSS)) as boss:
                await boss.status()
            async with AsyncClient(cluster.address, ClientSecurity(token=TEXT)) as writer:
                await writer.model()

    with caplog.at_level(logging.INFO, logger="outrider"):
        asyncio.run(scenario())

    lines = [json.loads(logs.JsonFormatter().format(record)) for record in caplog.records]
    let_in = [(one["method"], one["caller"]) for one in lines if one["event"] == "call permitted"]
    assert let_in == [("/outrider.v1.ClusterService/GetStatus", "boss")]


def test_the_log_says_whose_a_request_is(model: Path, token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(model, access=AccessSettings(auth_token_file=token_file)) as cluster:
            async with AsyncClient(cluster.address, ClientSecurity(token=TEXT)) as writer:
                await writer.generate(token_ids=[5], max_tokens=2)
            async with AsyncClient(cluster.address, ClientSecurity(token=BOTH)) as both:
                await both.generate(token_ids=[5], max_tokens=2)

    with caplog.at_level(logging.INFO, logger="outrider"):
        asyncio.run(scenario())

    lines = [json.loads(logs.JsonFormatter().format(record)) for record in caplog.records]
    for event in ("request accepted", "request ended"):
        assert [one["caller"] for one in lines if one["event"] == event] == ["writer", "both"]


@pytest.mark.parametrize("text", ["", "# no token\n"])
def test_a_gateway_does_not_start_with_a_token_file_without_tokens(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)

    with pytest.raises(OutriderError, match="has no token, so every call would be refused"):
        Authenticator(file)


def test_refused_calls_are_counted_and_logged_without_the_token(
    model: Path, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(model, access=AccessSettings(auth_token_file=token_file)) as cluster:
            await statuses(cluster.address, GATEWAY, ClientSecurity(token="or-somebodys-secret"))
            await statuses(cluster.address, ["/outrider.v1.ClusterService/GetStatus"], ClientSecurity(token=TEXT))
            registry = cluster.gateway.metrics.registry
            counted = {
                status: registry.get_sample_value("outrider_gateway_refused_calls_total", {"status": status})
                for status in ("unauthenticated", "permission_denied")
            }
            assert counted == {"unauthenticated": len(GATEWAY), "permission_denied": 1}

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())

    lines = [json.loads(logs.JsonFormatter().format(record)) for record in caplog.records]
    refused = [one for one in lines if one["event"] == "call refused"]
    assert refused[-1] | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "outrider.gateway.auth",
        "event": "call refused",
        "method": "/outrider.v1.ClusterService/GetStatus",
        "status": "permission_denied",
        "caller": "writer",
    }
    assert not any(secret in json.dumps(lines) for secret in ("or-somebodys-secret", TEXT, BOSS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("or-a-token-put-there-by-mistake\n", "line 1 is not NAME ROLE"),
        (line("a", "inference", "x") + line("a", "admin", "y"), "line 2: duplicate name a"),
        (line("a", "root", "x"), "line 1: role must be inference or admin, got 'root'"),
        (line("a", "admin", "x").replace("sha256:", "md5:"), "line 1 is not NAME ROLE"),
        (line("a", "admin", "x").strip()[:-1], "line 1 is not NAME ROLE"),
    ],
)
def test_a_token_file_that_is_wrong_is_refused_by_line_without_quoting_it(text: str, message: str) -> None:
    with pytest.raises(OutriderError, match=message) as caught:
        parse_callers(text, "F")
    assert "mistake" not in str(caught.value)


def test_a_gateway_does_not_start_with_a_wrong_token_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(OutriderError, match=r"cannot read .*absent"):
            Gateway(GatewaySettings(controller="h:1", auth_token_file=tmp_path / "absent"))

    asyncio.run(scenario())


def test_a_caller_is_found_by_token_alone() -> None:
    callers = parse_callers(line("a", "inference", "one") + line("b", "admin", "two"), "F")

    assert [
        caller.name if (caller := caller_of(token, callers)) else None for token in ("one", "two", "", "three")
    ] == [
        "a",
        "b",
        None,
        None,
    ]


def test_a_token_that_is_taken_away_does_not_end_the_stream_it_opened(model: Path, token_file: Path) -> None:
    async def scenario() -> None:
        async with running(model, access=AccessSettings(auth_token_file=token_file)) as cluster:
            metadata = ClientSecurity(token=TEXT).metadata
            stream = cluster.inference.Generate(tokens(5, stopping=stopping(max_tokens=200)), metadata=metadata)
            await stream.read()
            token_file.write_text(line("boss", "admin", BOSS))
            await eventually(lambda: cluster.engine.live == set())
            count = 0
            while (event := await stream.read()) is not grpc.aio.EOF:
                count += len(event.output.token_ids)
            assert count == 200

    asyncio.run(scenario())


def test_only_who_sent_a_request_can_take_its_place(model: Path, token_file: Path) -> None:
    async def scenario() -> None:
        async with running(
            model, FakeEngine(max_model_len=100_000), access=AccessSettings(auth_token_file=token_file)
        ) as cluster:
            mine, theirs = ((("authorization", f"Bearer {token}"),) for token in (TEXT, BOTH))
            call = cluster.inference.Generate(tokens(5, request_id="r"), metadata=mine)
            accepted = (await call.read()).accepted
            resume = pb.Resume(
                seed=accepted.seed, fingerprint=accepted.fingerprint, outputs=[pb.ResumedOutput(index=0)]
            )

            stolen = cluster.inference.Generate(tokens(5, request_id="r", resume=resume), metadata=theirs)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rest(stolen)
            assert caught.value.code() is Code.ALREADY_EXISTS

            assert (await call.read()).HasField("output")
            own = cluster.inference.Generate(tokens(5, request_id="r", resume=resume), metadata=mine)
            assert (await own.read()).HasField("accepted")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rest(call)
            assert caught.value.code() is Code.ABORTED
            own.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(("shared", "salts"), [(False, ["writer", "both", "writer"]), (True, ["", "", ""])])
def test_cached_prefixes_are_a_tokens_own_unless_they_are_to_be_shared(
    model: Path, token_file: Path, shared: bool, salts: list[str]
) -> None:
    async def scenario() -> None:
        access = AccessSettings(auth_token_file=token_file)
        async with running(model, access=access, share_prefix_cache=shared) as cluster:
            for token in (TEXT, BOTH, TEXT):
                async with AsyncClient(cluster.address, ClientSecurity(token=token)) as client:
                    await client.generate(token_ids=[5], max_tokens=2)
            assert [request.cache_salt for request in cluster.engine.submitted] == salts

    asyncio.run(scenario())
