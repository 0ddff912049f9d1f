"""A load that rises and falls over `outrider serve` on a Ray whose real autoscaler brings the nodes."""

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from distributed.autoscaling_ray import AutoscalingRay
from distributed.served import Outrider

from outrider import Client

ASKED: dict[str, Any] = {"max_tokens": 250, "ignore_eos": True, "temperature": 0.9}
SCALING = {
    "device": "cpu",
    "kv_cache_memory_bytes": 67108864,
    "autoscale_max_replicas": 3,
    "autoscale_target_tokens": 800,
    "autoscale_cooldown_s": 10,
    "ranks_per_node": 1,
}
FROM_ZERO = SCALING | {"autoscale_min_replicas": 0, "autoscale_max_replicas": 1, "autoscale_cooldown_s": 3}


@pytest.fixture
def autoscaling_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[AutoscalingRay]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # whatever token this machine's user has
    ray = AutoscalingRay(cores_per_node=1, most_nodes=3, idle_s=6)
    yield ray
    ray.close()


class Crowd:
    """Clients that each ask one question after another until told to stop."""

    def __init__(self, address: str, clients: int) -> None:
        self.answers: list[tuple[int, list[int]]] = []
        self.errors: list[Exception] = []
        self._address, self._stop = address, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        with Client(self._address) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append((number, client.generate("def f(", seed=number, **ASKED).token_ids))
                except Exception as error:  # for the test's own thread
                    self.errors.append(error)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)


def wait_for_ready(client: Client, replicas: int, within_s: float = 180.0) -> None:
    until = time.monotonic() + within_s
    while [replica.state for replica in client.status().replicas] != ["ready"] * replicas:
        assert time.monotonic() < until, client.status()
        time.sleep(0.5)


def serve(ray: AutoscalingRay, settings: dict[str, Any], *options: str) -> Outrider:
    command = ["serve", "--port", "0", "--http-port", "0", "--ray-address", ray.address, "--name", "scaled"]
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return Outrider(*command, *given, *options)


@pytest.mark.full
@pytest.mark.timeout(570)
def test_replicas_and_nodes_follow_a_load_that_rises_and_falls_and_no_request_is_lost(
    autoscaling_ray: AutoscalingRay,
) -> None:
    run = serve(autoscaling_ray, SCALING)
    with Client(run.wait_until_ready(180)) as client:
        autoscaling_ray.wait_for_nodes(1)
        alone = {seed: client.generate("def f(", seed=seed, **ASKED).token_ids for seed in range(16)}

        crowd = Crowd(client.address, 16)
        wait_for_ready(client, 3)
        autoscaling_ray.wait_for_nodes(3)
        assert "tokens in flight need" in client.status().last_scaling
        crowd.close()
        wait_for_ready(client, 1)
        autoscaling_ray.wait_for_nodes(1)

        assert crowd.errors == []
        assert len(crowd.answers) >= 16
        assert all(token_ids == alone[seed] for seed, token_ids in crowd.answers)

    run.process.send_signal(signal.SIGTERM)
    assert run.finish(within_s=60) == 0, run.errors
    assert run.left() == []


@pytest.mark.full
@pytest.mark.timeout(570)
def test_without_a_load_there_is_no_replica_and_no_node_and_the_next_request_waits_for_both(
    autoscaling_ray: AutoscalingRay,
) -> None:
    run = serve(autoscaling_ray, FROM_ZERO, "--max-queue-wait-s", "180")
    with Client(run.wait_until_ready(180), patience_s=0) as client:
        before = client.generate("def f(", seed=1, **ASKED).token_ids
        wait_for_ready(client, 0)
        autoscaling_ray.wait_for_nodes(0)

        assert client.generate("def f(", seed=1, **ASKED).token_ids == before
        autoscaling_ray.wait_for_nodes(1)

    run.process.send_signal(signal.SIGTERM)
    assert run.finish(within_s=60) == 0, run.errors
    assert run.left() == []
