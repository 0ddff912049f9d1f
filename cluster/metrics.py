"""Every control-plane metric, defined once. Names are the contract's; the engine's own go through Ray."""

import contextlib
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from outrider.workers.types.errors import OutriderError

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class GatewayMetrics:
    """One gateway's metrics, as its clients see it, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "outrider_gateway_requests",
            "Requests that ended, by how: ok, error (after they were accepted) or the gRPC status they ended with.",
            ["status"],
            registry=self.registry,
        )
        self.refused_calls = Counter(
            "outrider_gateway_refused_calls",
            "Calls that were not let in, by the gRPC status they got: unauthenticated or permission_denied.",
            ["status"],
            registry=self.registry,
        )
        self.refused_requests = Counter(
            "outrider_gateway_refused_requests",
            "Requests that were refused for lack of room, by cause: live_requests, token_limit, queued_tokens, wait or "
            "deadline.",
            ["cause"],
            registry=self.registry,
        )
        self.resumed = Counter(
            "outrider_gateway_resumed_requests",
            "Requests that clients went on with here, behind what another call had brought.",
            registry=self.registry,
        )
        self.ended_replicas = Counter(
            "outrider_gateway_ended_replicas",
            "Replicas that ended under this gateway, by cause: stalled (their rounds hung) or other.",
            ["cause"],
            registry=self.registry,
        )
        self.quarantined = Counter(
            "outrider_gateway_quarantined_requests",
            "Requests that were ended because replicas in a row were lost while they computed them.",
            registry=self.registry,
        )
        self.moves = Counter(
            "outrider_gateway_request_moves",
            "Times that a request went on at another replica because its own was lost.",
            registry=self.registry,
        )
        self.live_requests = self._gauge("outrider_gateway_live_requests", "Requests that have not ended.")
        self.queued_requests = self._gauge(
            "outrider_gateway_queued_requests", "Accepted requests that wait for their turn to go to a replica."
        )
        self.queued_tokens = self._gauge(
            "outrider_gateway_queued_tokens", "Prompt tokens of requests that wait for their first token."
        )
        self.successor_waits = self._gauge(
            "outrider_gateway_successor_waits", "Requests that wait for a replica in the place of one that was lost."
        )
        self.loop_lag = self._gauge(
            "outrider_gateway_event_loop_lag_seconds", "Longest delay of the event loop within the last minute."
        )
        self.controller_connected = self._gauge(
            "outrider_gateway_controller_connected", "1 while the controller is heard, 0 while it is lost."
        )
        self.ready_replicas = self._gauge("outrider_gateway_ready_replicas", "Replicas that take requests.")
        self.time_to_first_token = self._histogram(
            "outrider_gateway_time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self.latency = self._histogram(
            "outrider_gateway_e2e_request_latency_seconds", "From an accepted request's arrival to its end."
        )

    def by_label(self, name: str, label: str) -> dict[str, int]:
        """A counter's values that are not 0."""
        families = (one for one in self.registry.collect() if one.name == f"outrider_gateway_{name}")
        samples = (sample for family in families for sample in family.samples if sample.name.endswith("_total"))
        return {sample.labels[label]: int(sample.value) for sample in samples if sample.value}

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, registry=self.registry, buckets=_SECONDS)


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serves `registry` over HTTP from a thread: the port (a free one for 0), and what stops it."""
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise OutriderError(f"cannot serve metrics on {host}:{port} ({error.strerror}): choose another port") from error

    def stop() -> None:
        with contextlib.suppress(OSError):
            server.shutdown()
            server.server_close()
        thread.join()

    return server.server_port, stop
