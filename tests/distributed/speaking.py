"""Replicas that speak, under a real controller behind a real gateway, and streams of what they say."""

import threading

from distributed.controlled import Controlled

from outrider import Client
from outrider.cluster.api.generation import Output
from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway_process import GatewayProcess, free_port
from outrider.proto import cluster_pb2
from outrider.workers.serving.rpc.cluster_key import draw_key

Status = cluster_pb2.GetStatusResponse


def states(status: Status) -> dict[str, str]:
    return {replica.name: replica.state for replica in status.replicas}


def ready(status: Status) -> set[str]:
    return {name for name, state in states(status).items() if state == "ready"}


class Served:
    """A controller of replicas that speak, a gateway process, and a client of it."""

    def __init__(self, cluster: Controlled) -> None:
        self.cluster = cluster
        cluster.wait_for_status(lambda status: bool(ready(status)), within_s=90)
        self._stop = threading.Event()
        self._gateway = GatewayProcess(
            controller=cluster.address,
            host="127.0.0.1",
            port=free_port("127.0.0.1"),
            metrics_port=None,
            access=AccessSettings(),
            cluster_key=draw_key(),  # which this controller, having none, does not ask for
            log_level="error",
        )
        self._gateway.wait_until_ready(self._stop)
        self.client = Client(self._gateway.address)

    def stream(self, number: int, max_tokens: int) -> "Stream":
        return Stream(self.client, number, max_tokens)

    def close(self) -> None:
        self.client.close()
        self._stop.set()
        self._gateway.close(self._stop)


ENDLESS = 90_000  # tokens: a quarter of an hour


class Stream:
    """A request on a thread of its own; has its first token when constructed."""

    def __init__(self, client: Client, number: int, max_tokens: int) -> None:
        self.token_ids: list[int] = []
        self.error: Exception | None = None
        self._first, self._enough = threading.Event(), threading.Event()
        self._events = client.stream(token_ids=[5 + number], max_tokens=max_tokens, seed=number)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._first.wait(90), "no token came"

    def _read(self) -> None:
        try:
            for event in self._events:
                if isinstance(event, Output):
                    self.token_ids += event.token_ids
                    self._first.set()
                if self._enough.is_set():
                    return self._events.close()
        except Exception as error:  # for the test's own thread
            self.error = error

    def cut(self, further: int = 20) -> list[int]:
        """Cancels it once it has said so much more: every token so far."""
        wanted = len(self.token_ids) + further
        while len(self.token_ids) < wanted and self._thread.is_alive():
            self._thread.join(0.01)
        self._enough.set()
        assert len(self.rest()) >= wanted, "it ended by itself"
        return self.token_ids

    def rest(self) -> list[int]:
        """Every token, once it has ended well."""
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert self.error is None
        return self.token_ids


def expected(number: int, tokens: int) -> list[int]:
    """What a SpeakingRank's engine says to `Served.stream(number, tokens)`."""
    return [100 + (5 + number + step) % 100 for step in range(tokens)]
