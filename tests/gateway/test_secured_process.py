"""A gateway as operators run it (TLS, tokens, a cluster key, all in files), called by the commands that they use."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from gateway.certificates import SERVER, Authority
from gateway.harness import KEY, eventually, running
from small_tokenizer import write_tokenizer

SOURCE = Path(__file__).resolve().parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}
COMMAND = [sys.executable, "-m", "outrider.cluster.cli"]


def outrider(*arguments: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], env={**ENVIRONMENT, **(environment or {})}, capture_output=True, text=True, timeout=60
    )


@contextmanager
def gateway(folder: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    log = (folder / "log").open("w")
    process = subprocess.Popen([*COMMAND, "--log-level", "debug", "gateway", *options], env=ENVIRONMENT, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def listening(log: Path) -> str:
    """The address in the log's first line of that kind."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for line in log.read_text().splitlines():
            if (event := json.loads(line))["event"] == "gateway listens":
                return str(event["address"])
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_commands_get_in_with_their_files_and_secrets_appear_nowhere(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server, own = authority.issue(SERVER), authority.issue("operator")
    tokens, key_file, token_file = (tmp_path / name for name in ("tokens", "key", "token"))
    key_file.write_text(KEY + "\n")
    made = outrider("token", "operator", "--role", "inference", "--role", "admin", "--file", str(tokens))
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    token_file.write_text(secret)
    assert secret not in tokens.read_text()
    assert tokens.stat().st_mode & 0o077 == 0

    options = ["--port", "0", "--http-port", "0", "--health-port", "0", "--cluster-key-file", str(key_file)]
    options += ["--tls-cert", str(server.cert), "--tls-key", str(server.key), "--tls-client-ca", str(authority.file)]
    options += ["--auth-token-file", str(tokens)]
    calling = {
        "OUTRIDER_TLS_CA": str(authority.file),
        "OUTRIDER_TLS_CERT": str(own.cert),
        "OUTRIDER_TLS_KEY": str(own.key),
        "OUTRIDER_TLS_SERVER_NAME": SERVER,
    }

    async def scenario() -> None:
        async with running(write_tokenizer(tmp_path / "model")) as cluster:
            with gateway(tmp_path, *options, "--controller", cluster.controller.address) as process:
                address = await asyncio.to_thread(listening, tmp_path / "log")
                await eventually(lambda: "model known" in (tmp_path / "log").read_text(), 20)
                await asyncio.to_thread(ask, address, calling, token_file)
                seen = [*psutil.Process(process.pid).cmdline(), *psutil.Process(process.pid).environ().values()]
                assert not any(word in text for text in seen for word in (KEY, secret))

    asyncio.run(scenario())
    log = (tmp_path / "log").read_text()
    assert '"caller": ""' in log
    assert not any(word in log for word in (KEY, secret, "or-wrong", "def fibonacci"))


def ask(address: str, calling: dict[str, str], token_file: Path) -> None:
    good = {**calling, "OUTRIDER_TOKEN_FILE": str(token_file), "OUTRIDER_ADDRESS": address}
    answer = outrider("generate", "def fibonacci(n):", "--max-tokens", "3", "--json", environment=good)
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(answer.stdout)["outputs"][0]["token_ids"]) == 3
    assert json.loads(outrider("status", "--json", environment=good).stdout)["name"] == "test"

    wrong = token_file.with_name("wrong")
    wrong.write_text("or-wrong")
    refused = outrider("status", "--address", address, "--token-file", str(wrong), environment=calling)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == ("error: no valid token: send authorization: Bearer TOKEN\n")


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--tls-cert", "c"), 2, "tls_key is missing"),
        (("--auth-token-file", "absent"), 1, "cannot read absent"),
        (("--cluster-key-file", "absent"), 1, "cannot read the cluster key absent"),
        (("--max-stop-strings", "-1"), 2, "max_stop_strings must be an integer of at least 0"),
    ],
)
def test_a_door_that_cannot_be_is_one_line(options: tuple[str, ...], status: int, message: str) -> None:
    ended = outrider("gateway", "--controller", "127.0.0.1:1", "--port", "0", "--http-port", "0", *options)

    assert ended.returncode == status
    (line,) = ended.stderr.splitlines()
    assert message in line
    assert line.startswith("error: ")


def test_a_name_gets_one_token_and_a_role_must_be_known(tmp_path: Path) -> None:
    file = str(tmp_path / "tokens")
    assert outrider("token", "a", "--role", "admin", "--file", file).returncode == 0

    assert "duplicate name a" in outrider("token", "a", "--role", "admin", "--file", file).stderr
    for name, role, named in (("b", "root", "--role must be inference or admin, got 'root'"), ("b c", "admin", "NAME")):
        refused = outrider("token", name, "--role", role, "--file", file)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert named in refused.stderr
    assert len(Path(file).read_text().splitlines()) == 1
