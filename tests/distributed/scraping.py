"""What Ray's metrics port on this node shows of a replica."""

import time
import urllib.request

import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def samples_of(replica: str) -> list[Sample]:
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return [one for family in families for one in family.samples if one.labels.get("replica") == replica]


def wait_until_published(name: str, replica: str, value: float, within_s: float = 60.0) -> None:
    """A gauge has this value, whatever those that have ended left behind."""
    until = time.monotonic() + within_s
    while not any(one.name == name and one.value == value for one in samples_of(replica)):
        assert time.monotonic() < until, f"{name} of {replica} was never {value}"
        time.sleep(0.2)
