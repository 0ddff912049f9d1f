"""A gateway's part of the cluster status, from its metrics."""

from outrider.cluster.gateway.observability.metrics import GatewayMetrics
from outrider.proto import cluster_pb2


def gateway_status(metrics: GatewayMetrics) -> cluster_pb2.GatewayStatus:
    value = metrics.registry.get_sample_value
    prefix = "outrider_gateway_"

    def count(name: str, labels: dict[str, str] | None = None) -> int:
        return int(value(prefix + name, labels) or 0)

    return cluster_pb2.GatewayStatus(
        live_requests=count("live_requests"),
        queued_requests=count("queued_requests"),
        refused=metrics.by_label("refused_requests", "cause"),
        resumed=count("resumed_requests_total"),
        moved=count("request_moves_total"),
        waiting_for_successor=count("successor_waits"),
        slow_readers=count("requests_total", {"status": "slow_reader"}),
        longest_loop_lag_s=value(prefix + "event_loop_lag_seconds") or 0.0,
        controller_lost=not count("controller_connected"),
        stalled_replicas=count("ended_replicas_total", {"cause": "stalled"}),
    )
