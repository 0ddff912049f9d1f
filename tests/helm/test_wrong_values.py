"""A value that cannot be is refused when the chart is rendered, with its key in the message."""

from typing import Any

import pytest
from helm.rendering import RenderError, render, with_values

WRONG: list[tuple[str, dict[str, Any], str]] = [
    # of the wrong type, unknown, out of range
    ("defaults", {"replicas": "two"}, "/replicas"),
    ("defaults", {"replicas": -1}, "/replicas"),
    ("defaults", {"replica": 2}, "replica"),
    ("defaults", {"workers.gpus": 8}, "gpus"),
    ("defaults", {"workers.gpusPerNode": -8}, "/workers/gpusPerNode"),
    ("defaults", {"workers.memory": "lots"}, "/workers/memory"),
    ("defaults", {"workers.tolerations": {"key": "x"}}, "/workers/tolerations"),
    ("defaults", {"workers.terminationGracePeriodSeconds": 20}, "/workers/terminationGracePeriodSeconds"),
    ("defaults", {"gateway.maxMessageBytes": 10}, "/gateway/maxMessageBytes"),
    ("defaults", {"gateway.logLevel": "trace"}, "/gateway/logLevel"),
    ("defaults", {"gateway.service.port": 70000}, "/gateway/service/port"),
    ("defaults", {"gateway.service.type": "ExternalName"}, "/gateway/service/type"),
    ("defaults", {"image.pullPolicy": "Sometimes"}, "/image/pullPolicy"),
    ("defaults", {"model.speculation": 17}, "/model/speculation"),
    ("defaults", {"model.path": "relative"}, "/model/path"),
    ("defaults", {"ports.leaders": "20100"}, "/ports/leaders"),
    ("defaults", {"ports.leaders": "20199-20100"}, "ports.leaders"),
    ("defaults", {"ports.torch": "32768-99999"}, "ports.torch"),
    ("defaults", {"nccl.env": {"PATH": "/"}}, "/nccl/env"),
    ("defaults", {"tracing.endpoint": "collector:4317"}, "/tracing/endpoint"),
    ("defaults", {"clusterKey.existingSecret": ""}, "/clusterKey/existingSecret"),
    ("defaults", {"plan.gpu": "h100"}, "/plan/gpu"),
    ("defaults", {"auth.token": "secret"}, "token"),
    ("defaults", {"weights.source": "ftp"}, "/weights/source"),
    ("defaults", {"fullnameOverride": "x" * 41}, "/fullnameOverride"),
    # what the plan refuses
    ("r1-1x8-b200", {"workers.gpusPerNode": 4}, "workers.gpusPerNode: a replica has 1 x 4 = 4 GPUs"),
    ("r1-1x8-b200", {"plan.gpu": "h100-80g"}, "workers.gpusPerNode: 8 x h100-80g have 680 GB"),
    ("r1-2x8-h200", {"workers.nodesPerReplica": 3}, "workers.gpusPerNode: a replica has 3 x 8 = 24 GPUs"),
    ("r1-4x8-h100-dp", {"parallel.expert": 8}, "parallel.expert: must be 1 or data x tensor = 32, got 8"),
    (
        "r1-1x8-b200",
        {"parallel": {"pipeline": 1, "tensor": 3}, "workers.gpusPerNode": 3},
        "parallel.tensor: must divide",
    ),
    ("cpu-demo", {"parallel.pipeline": 3}, "workers.cpus: a replica has 1 x 2 = 2 cores"),
    # what does not go together
    ("defaults", {"replicas": 2}, "workers.maxReplicas: must be at least replicas = 2, got 1"),
    ("r1-2x8-h200", {"scaling.minReplicas": 2}, "scaling.minReplicas: must be at most"),
    ("defaults", {"scaling.autoscale.enabled": True}, "scaling.autoscale.enabled: requires scaling.enabled"),
    ("defaults", {"scaling.autoscale.headroom": -0.1}, "/scaling/autoscale/headroom"),
    ("r1-2x8-h200", {"gateway.autoscaling.minReplicas": 9}, "gateway.autoscaling.maxReplicas: must be at least"),
    ("defaults", {"model.path": "/models/x"}, "weights.source: bundled contains only scout"),
    ("defaults", {"weights.source": "claim"}, "model.path: must be /models or below it"),
    ("r1-1x8-b200", {"weights.claim": ""}, "weights.claim: weights.source claim needs"),
    ("r1-2x8-h200", {"weights.objectStore.url": ""}, "weights.objectStore.url: weights.source objectStore needs"),
    ("r1-4x8-h100-dp", {"weights.objectStore.rcloneConfigSecret": ""}, "weights.objectStore.rcloneConfigSecret"),
    ("mutual-tls", {"tls.existingSecret": ""}, "tls.existingSecret: mutual TLS"),
    ("mutual-tls", {"test.tokenExistingSecret": ""}, "test.tokenExistingSecret: with auth.existingSecret"),
    ("mutual-tls", {"test.clientCertExistingSecret": ""}, "test.clientCertExistingSecret: with mutual TLS"),
    (
        "mutual-tls",
        {"gateway.service.clusterIP": "None"},
        "gateway.service.clusterIP: None is only valid with type ClusterIP",
    ),
    ("defaults", {"gateway.http.port": 70000}, "/gateway/http/port"),
    ("defaults", {"gateway.ingress": {"enabled": True}, "gateway.http.port": 0}, "gateway.http.port: gateway.ingress"),
    ("inference-gateway", {"gateway.http.port": 0}, "gateway.http.port: gateway.httpRoute.enabled needs a port"),
    ("inference-gateway", {"gateway.httpRoute.parentRefs": []}, "gateway.httpRoute.parentRefs: an HTTPRoute needs"),
    ("inference-gateway", {"gateway.httpRoute.requestTimeout": "5 minutes"}, "/gateway/httpRoute/requestTimeout"),
    ("inference-gateway", {"gateway.inferencePool.endpointPicker": ""}, "gateway.inferencePool.endpointPicker: an"),
    ("inference-gateway", {"gateway.inferencePool.failureMode": "Open"}, "/gateway/inferencePool/failureMode"),
    (
        "inference-gateway",
        {"auth.existingSecret": "tokens", "test.tokenExistingSecret": "t"},
        "gateway.inferencePool.enabled: the endpoint picker reads /metrics without a token",
    ),
    ("keda-volcano", {"scaling.enabled": False}, "scaling.keda.enabled: requires scaling.enabled"),
    ("keda-volcano", {"scaling.autoscale": {"enabled": True}}, "scaling.keda.enabled: scaling.autoscale.enabled sets"),
    ("keda-volcano", {"scaling.keda.serverAddress": ""}, "scaling.keda.serverAddress: KEDA needs Prometheus"),
    ("keda-volcano", {"scaling.keda.serverAddress": "prometheus:9090"}, "/scaling/keda/serverAddress"),
    ("defaults", {"gangScheduling.queue": "q"}, 'gangScheduling.queue: scheduler "" has no queues'),
    ("kueue", {"gangScheduling.queue": ""}, "gangScheduling.queue: scheduler kueue requires one"),
    ("kueue", {"scaling.enabled": True}, "scaling.enabled: Kueue admits a complete RayCluster"),
    ("defaults", {"gangScheduling.scheduler": "slurm"}, "/gangScheduling/scheduler"),
    ("http-ingress", {"weights.huggingFace.model": ""}, "weights.huggingFace.model: weights.source huggingFace"),
    ("http-ingress", {"weights.huggingFace.model": "deepseek-ai/R1"}, "/weights/huggingFace/model"),
    ("defaults", {"model.settings": {"model": "x"}}, "model.settings.model: is set by the chart's values"),
]


@pytest.mark.parametrize(
    ("name", "changes", "message"), WRONG, ids=[f"{n} {next(iter(c))} {i}" for i, (n, c, _) in enumerate(WRONG)]
)
def test_a_wrong_value_is_refused_by_its_key(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError) as caught:
        render(with_values(name, changes))

    assert message in str(caught.value), str(caught.value)
