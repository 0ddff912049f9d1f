"""`outrider serve` as a process, with the real model on two stages: from its ready line to nothing left."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from distributed.controlled import actors, groups
from distributed.served import Outrider, is_free

from outrider import Client
from outrider.cluster.errors import GenerationFailedError
from outrider.cluster.generation import Output
from outrider.workers.config import resolve_model

TWO_STAGES = ("--pipeline-parallel-size", "2", "--port", "0", "--set", "kv_cache_memory_bytes=67108864")


def last_words(client: Client, freeze: int) -> tuple[str, float]:
    """Freezes a process in the middle of a request: how the request ends, and how long after."""
    frozen_at = 0.0
    stream = client.stream("def f(", max_tokens=3000, ignore_eos=True, seed=1)
    try:
        for event in stream:
            if isinstance(event, Output) and not frozen_at:
                frozen_at = time.monotonic()
                os.kill(freeze, signal.SIGSTOP)
    except GenerationFailedError as error:
        return str(error), time.monotonic() - frozen_at
    pytest.fail("the request ended well, with a frozen rank")


def test_serve_answers_names_a_frozen_rank_and_leaves_nothing() -> None:
    run = Outrider("serve", *TWO_STAGES, "--ray-address", "local", "--name", "alone")
    address = run.wait_until_ready()
    with Client(address) as client:
        answers = [client.generate("def f(", max_tokens=24, seed=5, speculation=s) for s in ("auto", "off", "auto")]
        assert len({answer.text for answer in answers}) == 1
        (replica,) = client.status().replicas
        assert [rank.state for rank in replica.ranks] == ["ready", "ready"]

        reason, seconds = last_words(client, freeze=replica.ranks[1].pid)

        assert "rank 1 (stage 1" in reason
        assert seconds < 10, f"noticed after {seconds:.1f} s"
        assert "rank 1 (stage 1" in client.status().problem

    run.process.send_signal(signal.SIGTERM)

    assert run.finish(within_s=40) == 0, run.errors
    assert run.left() == []
    assert is_free(address)


def end_in_mid_request(run: Outrider, client: Client, tokens: int) -> int:
    """Sends SIGTERM while a request runs: how many of its tokens still came."""
    received: list[int] = []

    def read() -> None:
        for event in client.stream("def f(", max_tokens=tokens, ignore_eos=True, seed=1):
            received.extend(event.token_ids if isinstance(event, Output) else ())

    reader = threading.Thread(target=read)
    reader.start()
    while not received:
        time.sleep(0.01)
    run.process.send_signal(signal.SIGTERM)
    reader.join(30)
    return len(received)


def test_what_a_killed_serve_left_on_a_shared_ray_is_removed_by_the_next_which_drains_when_told_to(
    ray_address: str, name: str
) -> None:
    options = (*TWO_STAGES, "--ray-address", ray_address, "--name", name)
    killed = Outrider("serve", *options)
    killed.wait_until_ready()

    refused = Outrider("serve", *options)
    assert refused.finish() == 1
    assert "".join(refused.errors) == (
        f"error: a cluster named '{name}' is being served already: stop it, or choose another --name\n"
    )

    killed.process.kill()
    assert killed.finish() == -signal.SIGKILL
    assert killed.left() == []  # its gateway ended with it
    assert len(actors(name)) == 3  # Ray keeps what is detached
    time.sleep(6)  # until the controller misses its owner

    second = Outrider("serve", *options)
    with Client(second.wait_until_ready()) as client:
        assert end_in_mid_request(second, client, tokens=100) == 100

    assert second.finish(within_s=40) == 0
    assert "left by an earlier run" in "".join(second.errors)
    assert (actors(name), groups(name), second.left()) == ([], [], [])


def test_damaged_weights_are_one_line_and_leave_nothing(ray_address: str, name: str, tmp_path: Path) -> None:
    scout, damaged = resolve_model("scout"), tmp_path / "damaged"
    damaged.mkdir()
    for file in scout.iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)

    run = Outrider("serve", *TWO_STAGES, "--ray-address", ray_address, "--name", name, "--model", str(damaged))

    assert run.finish() == 1
    (line,) = run.errors
    assert line.startswith("error: rank ")
    assert "safetensors" in line
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
        run = Outrider("serve", "--port", "0", "--ray-address", ray_address)
        status = run.finish()
    finally:
        _internal_kv_put(key, genuine, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)

    assert status == 1
    (line,) = run.errors
    assert line.startswith("error: the Ray cluster runs Ray 1.2.3")
    assert ray.__version__ in line


def test_nothing_at_the_ray_address_is_one_line() -> None:
    run = Outrider("serve", "--port", "0", "--ray-address", "127.0.0.1:1")

    assert run.finish() == 1
    assert run.errors == ["error: no Ray cluster answers at 127.0.0.1:1: see --ray-address\n"]
