"""`outrider serve` as a process, with the real model on two stages: from its ready line to nothing left."""

import asyncio
import json
import os
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from distributed.controlled import (
    actors,
    groups,
    is_owned,
    kill_controller,
    wait_until_abandoned,
    wait_until_status_works,
)
from distributed.served import Outrider, is_free
from gateway.every_rpc import CONTROLLER, LEADER, assert_closed_to_strangers, statuses
from grpc_health.v1 import health_pb2, health_pb2_grpc
from patience import NOTICED_S

from outrider import Client
from outrider.cluster.api.generation import Event, Output
from outrider.cluster.client.base import PLAIN
from outrider.cluster.controller.controller import OWNER_SILENT_S
from outrider.cluster.controller.names import controller_name
from outrider.cluster.gateway_process import free_port
from outrider.workers.config import resolve_model
from outrider.workers.serving.rpc.cluster_key import draw_key

ONE_STAGE = ("--port", "0", "--http-port", "0", "--set", "kv_cache_memory_bytes=67108864")
TWO_STAGES = ("--pipeline-parallel-size", "2", *ONE_STAGE)


QUESTION: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.9, "seed": 1}


def answer_through(client: Client, pid: int, number: signal.Signals) -> tuple[list[int], str, float]:
    """Sends a signal to a rank in the middle of QUESTION: the whole answer, what the controller says of the end of
    that generation, and how soon it said so."""
    events = client.stream("def f(", **QUESTION)
    token_ids: list[int] = []
    while not token_ids:
        token_ids += tokens_of(next(events))
    sent_at = time.monotonic()
    os.kill(pid, number)
    said = threading.Event()
    words: list[tuple[str, float]] = []

    def watch() -> None:
        for status in client.watch_status():
            if status.replicas[0].last_ending:
                words.append((status.replicas[0].last_ending, time.monotonic() - sent_at))
                said.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    for event in events:
        token_ids += tokens_of(event)
    assert said.wait(NOTICED_S)
    return token_ids, *words[0]


def tokens_of(event: Event) -> tuple[int, ...]:
    return event.token_ids if isinstance(event, Output) else ()


def test_a_request_outlives_a_frozen_rank_which_is_named_and_nothing_is_left() -> None:
    http = f"127.0.0.1:{free_port('127.0.0.1')}"
    run = Outrider(
        "serve", *TWO_STAGES, "--http-port", http.partition(":")[2], "--ray-address", "local", "--name", "alone"
    )
    address = run.wait_until_ready()
    assert f", http://{http}, " in run.output[0]
    with urllib.request.urlopen(f"http://{http}/health", timeout=10) as healthy:
        assert healthy.status == 200
    with Client(address) as client:
        answers = [client.generate("def f(", max_tokens=24, seed=5, speculation=s) for s in ("auto", "off", "auto")]
        assert len({answer.text for answer in answers}) == 1
        undisturbed = client.generate("def f(", **QUESTION).token_ids
        (replica,) = client.status().replicas
        assert [rank.state for rank in replica.ranks] == ["ready", "ready"]
        assert run.sockets_off_loopback() == []
        assert_closed_to_strangers(replica.ranks[0].pid, LEADER)
        assert_controller_is_closed_to_strangers(run)

        answer, reason, seconds = answer_through(client, replica.ranks[1].pid, signal.SIGSTOP)

        assert answer == undisturbed
        assert "rank 1 (stage 1" in reason
        assert seconds < NOTICED_S
        (replica,) = client.status().replicas
        assert (replica.generation, replica.state) == (2, "ready")
        events = client.stream("def f(", **QUESTION)
        answer = [*tokens_of(next(events)), *tokens_of(next(events))]
        run.child("gateway").kill()
        assert answer + [token for event in events for token in tokens_of(event)] == undisturbed

    run.process.send_signal(signal.SIGTERM)

    assert run.finish(within_s=40) == 0, run.errors
    assert run.left() == []
    assert is_free(address)
    assert is_free(http)


def assert_controller_is_closed_to_strangers(run: Outrider) -> None:
    """Without the key, which no command line shows."""
    command = run.child("gateway").cmdline()
    controller = command[command.index("--controller") + 1]

    assert command[command.index("--cluster-key-file") + 1] == "-"
    got = asyncio.run(statuses(controller, CONTROLLER, PLAIN))
    assert set(got.values()) == {grpc.StatusCode.UNAUTHENTICATED}, got
    with grpc.insecure_channel(controller) as channel:  # a probe has no key
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
def test_a_request_outlives_a_killed_rank_which_is_named_soon(ray_address: str, name: str, rank: int) -> None:
    run = Outrider("serve", *TWO_STAGES, "--ray-address", ray_address, "--name", name)
    with Client(run.wait_until_ready()) as client:
        undisturbed = client.generate("def f(", **QUESTION).token_ids
        pid = client.status().replicas[0].ranks[rank].pid

        answer, reason, seconds = answer_through(client, pid, signal.SIGKILL)

        assert answer == undisturbed
        assert f"rank {1 - rank} " not in reason
        assert seconds < NOTICED_S
        assert re.search(rf"rank {rank} \(stage {rank}, .*, pid {pid}\) died: its process was killed", reason)

    run.process.send_signal(signal.SIGTERM)
    assert run.finish(within_s=40) == 0, run.errors
    assert f"warning: replica r0 ended (rank {rank} (stage {rank}" in "".join(run.errors)
    assert (actors(name), groups(name), run.left()) == ([], [], [])


def end_in_mid_request(run: Outrider, client: Client, tokens: int, meanwhile: Callable[[], None]) -> int:
    """Sends SIGTERM while a request runs, and holds its end up for `meanwhile`: how many of its tokens still came."""
    received: list[int] = []

    def read() -> None:
        for event in client.stream("def f(", max_tokens=tokens, ignore_eos=True, seed=1):
            received.extend(event.token_ids if isinstance(event, Output) else ())

    reader = threading.Thread(target=read)
    reader.start()
    while not received:
        time.sleep(0.01)
    gateway = run.child("gateway")
    gateway.suspend()
    run.process.send_signal(signal.SIGTERM)
    meanwhile()
    gateway.resume()
    reader.join(120)
    return len(received)


def test_what_a_killed_serve_left_on_a_shared_ray_is_removed_by_the_next_which_drains_when_told_to(
    ray_address: str, name: str
) -> None:
    options = (*TWO_STAGES, "--ray-address", ray_address, "--name", name)
    killed = Outrider("serve", *options)
    killed.wait_until_ready()

    def assert_it_is_still_owned_after_long_silence() -> None:
        time.sleep(OWNER_SILENT_S + 0.5)
        assert is_owned(name)

    refused = Outrider("serve", *options)
    assert refused.finish() == 1
    assert "".join(refused.errors) == (
        f"error: a cluster named '{name}' is being served already: stop it, or choose another --name\n"
    )
    killed.process.kill()
    assert killed.finish() == -signal.SIGKILL
    assert killed.left() == []  # its gateway ended with it
    assert len(actors(name)) == 3  # Ray keeps what is detached
    wait_until_abandoned(name)

    second = Outrider("serve", *options)
    with Client(second.wait_until_ready()) as client:
        assert end_in_mid_request(second, client, 100, assert_it_is_still_owned_after_long_silence) == 100

    assert second.finish(within_s=40) == 0
    assert "left by an earlier run" in "".join(second.errors)
    assert (actors(name), groups(name), second.left()) == ([], [], [])


def answer_from(events: Iterator[Event], meanwhile: Callable[[], None]) -> list[int]:
    """All tokens of a stream, with something that happens behind the first."""
    token_ids = [*tokens_of(next(events)), *tokens_of(next(events))]
    meanwhile()
    return token_ids + [token for event in events for token in tokens_of(event)]


def wait_for_states(client: Client, *states: str) -> None:
    """Of all replicas, in order."""
    for status in client.watch_status():
        if tuple(replica.state for replica in status.replicas) == states:
            return


@pytest.mark.full
def test_a_killed_controller_comes_back_and_neither_streams_nor_operators_miss_it_for_long(
    ray_address: str, name: str
) -> None:
    run = Outrider("serve", *TWO_STAGES, "--ray-address", ray_address, "--name", name)
    with Client(run.wait_until_ready()) as client:
        undisturbed = client.generate("def f(", **QUESTION).token_ids
        (before,) = client.status().replicas

        assert answer_from(client.stream("def f(", **QUESTION), lambda: kill_controller(name)) == undisturbed

        wait_until_status_works(client)
        (after,) = client.status().replicas
        assert (after.generation, after.state) == (1, "ready")
        assert client.scale(2).pending == 1
        wait_for_states(client, "ready", "waiting")  # this Ray has cores for one
        client.scale(1)
        wait_for_states(client, "ready")
        assert [rank.pid for rank in client.status().replicas[0].ranks] == [rank.pid for rank in before.ranks]

    run.process.send_signal(signal.SIGTERM)
    assert run.finish(within_s=40) == 0, run.errors
    assert (actors(name), groups(name), run.left()) == ([], [], [])


@pytest.mark.full
def test_a_controller_that_is_no_more_is_replaced_and_the_replica_goes_on(ray_address: str, name: str) -> None:
    import ray

    run = Outrider("serve", *ONE_STAGE, "--ray-address", ray_address, "--name", name)
    with Client(run.wait_until_ready()) as client:
        undisturbed = client.generate("def f(", **QUESTION).token_ids
        (before,) = client.status().replicas

        def end_for_good() -> None:
            ray.kill(ray.get_actor(controller_name(name)), no_restart=True)

        assert answer_from(client.stream("def f(", **QUESTION), end_for_good) == undisturbed

        wait_until_status_works(client)
        (after,) = client.status().replicas
        assert (after.generation, after.state) == (1, "ready")
        assert [rank.pid for rank in after.ranks] == [rank.pid for rank in before.ranks]

    run.process.send_signal(signal.SIGTERM)
    assert run.finish(within_s=40) == 0, run.errors
    assert (actors(name), groups(name), run.left()) == ([], [], [])


@pytest.mark.full
def test_a_serve_that_takes_over_goes_on_with_the_ranks_of_a_killed_one_and_their_streams(
    ray_address: str, name: str, tmp_path: Path
) -> None:
    key, port, access = tmp_path / "key", free_port("127.0.0.1"), free_port("127.0.0.1")
    key.write_text(draw_key())
    options = (*TWO_STAGES, "--ray-address", ray_address, "--name", name, "--cluster-key-file", str(key))
    options += ("--set", "take_over=true", "--set", f"controller_port={port}")
    killed = Outrider("serve", *options)
    killed.wait_until_ready()
    gateway = Outrider(
        "gateway",
        "--controller",
        f"127.0.0.1:{port}",
        "--port",
        str(access),
        "--http-port",
        "0",
        "--cluster-key-file",
        str(key),
    )
    with Client(f"127.0.0.1:{access}") as client:
        wait_until_status_works(client)
        undisturbed = client.generate("def f(", **QUESTION).token_ids
        (before,) = client.status().replicas

        assert answer_from(client.stream("def f(", **QUESTION), killed.process.kill) == undisturbed
        wait_until_abandoned(name)
        second = Outrider("serve", *options)
        second.wait_until_ready()

        (after,) = client.status().replicas
        assert (after.generation, [rank.pid for rank in after.ranks]) == (1, [rank.pid for rank in before.ranks])
        assert client.generate("def f(", **QUESTION).token_ids == undisturbed

    gateway.process.send_signal(signal.SIGTERM)
    second.process.send_signal(signal.SIGTERM)
    assert second.finish(within_s=40) == 0, second.errors
    assert "adopting replicas r0 of an earlier run" in "".join(second.errors)
    assert gateway.finish(within_s=40) == 0, gateway.errors
    assert (actors(name), groups(name), killed.left(), second.left()) == ([], [], [], [])


def test_damaged_weights_are_one_line_and_leave_nothing(ray_address: str, name: str, tmp_path: Path) -> None:
    scout, damaged = resolve_model("scout"), tmp_path / "damaged"
    damaged.mkdir()
    for file in scout.iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)

    run = Outrider("serve", *ONE_STAGE, "--ray-address", ray_address, "--name", name, "--model", str(damaged))

    assert run.finish() == 1
    (line,) = run.errors
    assert line.startswith("error: rank ")
    assert "safetensors" in line
    assert (actors(name), groups(name), run.left()) == ([], [], [])


def test_a_gateway_that_cannot_go_on_ends_the_run_which_says_why(ray_address: str, name: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(resolve_model("scout"), damaged)
    (damaged / "tokenizer_config.json").write_text(json.dumps({"chat_template": [5]}))

    run = Outrider("serve", *ONE_STAGE, "--ray-address", ray_address, "--name", name, "--model", str(damaged))

    assert run.finish() == 1
    why, what = run.errors
    assert why.startswith("error: the gateway cannot continue: AttributeError: ")
    assert re.fullmatch(r"error: the gateway on \S+ ended with status 1\n", what)
    assert (actors(name), groups(name), run.left()) == ([], [], [])


def test_another_version_of_ray_is_named(ray_address: str) -> None:
    import ray
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    key = b"CLUSTER_METADATA"
    genuine = _internal_kv_get(key, namespace=KV_NAMESPACE_CLUSTER)
    ours = ray.__version__.encode()
    assert ours in genuine
    _internal_kv_put(key, genuine.replace(ours, b"1.2.3"), overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
    try:
        run = Outrider("serve", "--port", "0", "--http-port", "0", "--ray-address", ray_address)
        status = run.finish()
    finally:
        _internal_kv_put(key, genuine, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)

    assert status == 1
    (line,) = run.errors
    assert line.startswith("error: the Ray cluster runs Ray 1.2.3")
    assert ray.__version__ in line


def test_nothing_at_the_ray_address_is_one_line() -> None:
    run = Outrider("serve", "--port", "0", "--http-port", "0", "--ray-address", "127.0.0.1:1")

    assert run.finish() == 1
    assert run.errors == ["error: no Ray cluster answers at 127.0.0.1:1: see --ray-address\n"]
