"""TLS and mutual TLS: who gets nothing, what a renewed certificate changes, and where probes go."""

import asyncio
from pathlib import Path

import grpc
import pytest
from gateway.certificates import Authority, access, client
from gateway.every_rpc import GATEWAY, statuses
from gateway.harness import running
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider import AsyncClient, Client, ClientSecurity
from outrider.cluster.api.errors import InvalidRequestError, UnavailableError
from outrider.cluster.client.base import PLAIN
from outrider.cluster.gateway.access.settings import AccessSettings, TlsFiles
from outrider.cluster.gateway.access.tls import server_credentials
from outrider.workers.types.errors import OutriderError

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


def test_a_client_that_trusts_the_certificate_is_served_sync_and_async(model: Path, authority: Authority) -> None:
    def ask(address: str) -> str:
        with Client(address, client(authority)) as one:
            return one.generate(token_ids=[5], max_tokens=3).finish_reason

    async def scenario() -> None:
        async with running(model, access=access(authority)) as cluster:
            assert await asyncio.to_thread(ask, cluster.address) == "length"
            async with AsyncClient(cluster.address, client(authority)) as one:
                assert (await one.status()).name == "test"

    asyncio.run(scenario())


def test_plain_callers_and_callers_that_trust_somebody_else_get_nothing(
    model: Path, authority: Authority, stranger: Authority
) -> None:
    async def scenario() -> None:
        async with running(model, access=access(authority)) as cluster:
            for security in (PLAIN, client(stranger), ClientSecurity(tls=True)):
                got = await statuses(cluster.address, GATEWAY, security)
                assert set(got.values()) == {Code.UNAVAILABLE}, got
            assert cluster.engine.submitted == []

    asyncio.run(scenario())


def test_mutual_tls_refuses_clients_without_a_valid_certificate_of_the_right_authority(
    model: Path, authority: Authority, stranger: Authority
) -> None:
    shown = {
        "none": client(authority),
        "another authority's": client(authority, stranger.issue("client")),
        "expired": client(authority, authority.expired("late")),
        "self-made": client(authority, stranger.issue("gateway.test")),
        "plain": PLAIN,
    }

    async def scenario() -> None:
        async with running(model, access=access(authority, client_ca=authority)) as cluster:
            for who, security in shown.items():
                got = await statuses(cluster.address, GATEWAY, security)
                assert set(got.values()) == {Code.UNAVAILABLE}, (who, got)
            assert cluster.engine.submitted == []
            async with AsyncClient(cluster.address, client(authority, authority.issue("client"))) as one:
                assert (await one.generate(token_ids=[5], max_tokens=3)).finish_reason == "length"

    asyncio.run(scenario())


def test_a_renewed_certificate_serves_new_connections_and_keeps_old_ones(
    model: Path, tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async def scenario() -> None:
        files = _mounted(tmp_path, authority)
        settings = AccessSettings(tls_cert=files.cert, tls_key=files.key)
        async with running(model, access=settings) as cluster, AsyncClient(cluster.address, client(authority)) as old:
            await old.model()

            _mount(tmp_path, stranger)

            async with AsyncClient(cluster.address, client(stranger)) as new:
                await new.model()
            await old.model()
            assert set((await statuses(cluster.address, GATEWAY[:1], client(authority))).values()) == {Code.UNAVAILABLE}

            (tmp_path / "now" / "tls.crt").resolve().write_text("torn")
            async with AsyncClient(cluster.address, client(stranger)) as new:
                await new.model()

    asyncio.run(scenario())


def _mounted(folder: Path, authority: Authority) -> TlsFiles:
    """As Kubernetes mounts a Secret: a link to a directory that is replaced whole."""
    _mount(folder, authority)
    return TlsFiles(cert=folder / "now" / "tls.crt", key=folder / "now" / "tls.key")


def _mount(folder: Path, authority: Authority) -> None:
    version = folder / f"version{len(list(folder.iterdir()))}"
    version.mkdir()
    issued = authority.issue("gateway.test")
    (version / "tls.crt").write_bytes(issued.cert.read_bytes())
    (version / "tls.key").write_bytes(issued.key.read_bytes())
    (folder / "next").symlink_to(version)
    (folder / "next").replace(folder / "now")


def test_the_health_port_is_plain_and_answers_health_alone(model: Path, authority: Authority) -> None:
    async def scenario() -> None:
        async with running(model, access=access(authority, client_ca=authority, health_port=0)) as cluster:
            address = f"127.0.0.1:{cluster.gateway.health_port}"
            async with grpc.aio.insecure_channel(address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                for service in ("", "outrider.v1.InferenceService"):
                    answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert set((await statuses(address, GATEWAY, PLAIN)).values()) == {Code.UNIMPLEMENTED}

    asyncio.run(scenario())


def test_a_certificate_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, authority: Authority) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    text = tmp_path / "text"
    text.write_text("no certificate")

    def fails(**files: Path) -> str:
        with pytest.raises(OutriderError) as caught:
            server_credentials(TlsFiles(**files))
        return str(caught.value)

    assert "are not a PEM pair (KEY_VALUES_MISMATCH)" in fails(cert=one.cert, key=other.key)
    assert "are not a PEM pair" in fails(cert=text, key=one.key)
    assert fails(cert=one.cert, key=tmp_path / "absent").startswith(f"cannot read {tmp_path / 'absent'}")
    assert "--tls-client-ca" in fails(cert=one.cert, key=one.key, client_ca=text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_cert": Path("c")}, "tls_key is missing"),
        ({"tls_key": Path("k")}, "tls_cert is missing"),
        ({"tls_client_ca": Path("a")}, "tls_client_ca requires tls_cert and tls_key"),
        ({"health_port": 70_000}, "health_port must be 0..65535"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AccessSettings(**options)


def test_an_open_door_is_said_to_be_one(tmp_path: Path) -> None:
    tokens, cert = AccessSettings(auth_token_file=tmp_path), {"tls_cert": tmp_path, "tls_key": tmp_path}

    assert AccessSettings().weakness("127.0.0.1") == ""
    assert "may call every method" in AccessSettings().weakness("0.0.0.0")
    assert "may call every method" in AccessSettings(**cert).weakness("0.0.0.0")
    assert "unencrypted" in tokens.weakness("10.0.0.1")
    assert AccessSettings(**cert, auth_token_file=tmp_path).weakness("0.0.0.0") == ""
    assert AccessSettings(**cert, tls_client_ca=tmp_path).weakness("0.0.0.0") == ""


def test_a_client_says_what_is_wrong_with_its_own_side(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(InvalidRequestError, match="must be given together"):
        ClientSecurity(cert=b"x")
    with pytest.raises(InvalidRequestError, match="token must be one line"):
        ClientSecurity(token="two\nlines")
    with pytest.raises(InvalidRequestError, match=r"cannot read .*absent"):
        ClientSecurity.from_files(token_file=tmp_path / "absent")
    assert "or-secret" not in repr(ClientSecurity(token="or-secret", cert=b"c", key=b"or-secret"))
    with Client("127.0.0.1:1", client(authority)) as one, pytest.raises(UnavailableError):
        one.model(timeout_s=2)
