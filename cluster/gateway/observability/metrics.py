"""The gateway's own metrics. Engine metrics are exported through Ray."""

import contextlib
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from outrider.workers.types.errors import OutriderError

_PREFIX = "outrider_gateway_"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class GatewayMetrics:
    """One gateway's metrics, as its clients see them, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Requests that ended, by status: ok, error or a gRPC status.", "status"
        )
        self.refused_calls = self._counter("refused_calls", "Calls refused because they are not authorized.", "status")
        self.refused_requests = self._counter(
            "refused_requests", "Requests refused because of overload, by the limit that was reached.", "cause"
        )
        self.resumed = self._counter("resumed_requests", "Requests that clients resumed here after a broken call.")
        self.ended_replicas = self._counter(
            "ended_replicas", "Replicas that ended, by cause: stalled or other.", "cause"
        )
        self.quarantined = self._counter(
            "quarantined_requests", "Requests ended because replicas crashed repeatedly while computing them."
        )
        self.moves = self._counter("request_moves", "Times that a request was resumed on another replica.")
        self.live_requests = self._gauge("live_requests", "Requests that have not ended.")
        self.queued_requests = self._gauge("queued_requests", "Accepted requests that wait to be sent to a replica.")
        self.queued_tokens = self._gauge("queued_tokens", "Prompt tokens of requests that wait for their first token.")
        self.successor_waits = self._gauge("successor_waits", "Requests that wait for a replica to resume on.")
        self.loop_lag = self._gauge("event_loop_lag_seconds", "Longest delay of the event loop within the last minute.")
        self.controller_connected = self._gauge("controller_connected", "1 while the controller is connected, else 0.")
        self.ready_replicas = self._gauge("ready_replicas", "Replicas that take requests.")
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self.latency = self._histogram("e2e_request_latency_seconds", "From an accepted request's arrival to its end.")

    def by_label(self, name: str, label: str) -> dict[str, int]:
        """A counter's values by label, without zeros."""
        families = (one for one in self.registry.collect() if one.name == _PREFIX + name)
        samples = (sample for family in families for sample in family.samples if sample.name.endswith("_total"))
        return {sample.labels[label]: int(sample.value) for sample in samples if sample.value}

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(_PREFIX + name, text, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(_PREFIX + name, text, registry=self.registry, buckets=_SECONDS)


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serves `registry` over HTTP from a thread. Returns the port (0: any free port), and a function that stops it."""
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
