"""Options of `serve` and `gateway`, in a module that loads fast.

An option of `serve` that is not given keeps its setting's default; the defaults of `gateway` are here.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.cluster.cli import options as o


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Settings with an option of their own; each field is one."""

    model: Annotated[str | None, typer.Option(help="scout, or a checkpoint directory.")] = None
    tensor_parallel_size: Annotated[int | None, typer.Option(help="Number of ranks that each layer is split over.")] = (
        None
    )
    pipeline_parallel_size: Annotated[int | None, typer.Option(help="Number of pipeline stages.")] = None
    expert_parallel_size: Annotated[
        int | None, typer.Option(help="1, or data x tensor: experts are spread over the ranks of a stage.")
    ] = None
    data_parallel_size: Annotated[int | None, typer.Option(help="Number of data-parallel groups.")] = None
    replicas: Annotated[int | None, typer.Option(help="Number of replicas; `outrider scale` changes it. [1]")] = None
    speculation: Annotated[str | None, typer.Option(help="auto, off, or a fixed draft depth 1..16.")] = None
    host: Annotated[str | None, typer.Option(help="Host that the gateway listens on. [127.0.0.1]")] = None
    port: Annotated[int | None, typer.Option(help="Port of the gateway; 0: any free one. [50051]")] = None
    http_port: Annotated[int | None, typer.Option(help="HTTP port of the gateway; 0: off. [8000]")] = None
    http_host: Annotated[str | None, typer.Option(help="Host for HTTP. [--host]")] = None
    metrics_port: Annotated[int | None, typer.Option(help="Port for the gateway's Prometheus metrics.")] = None
    health_port: o.HealthPort = None
    tls_cert: o.TlsCert = None
    tls_key: o.TlsKey = None
    tls_client_ca: o.TlsClientCa = None
    auth_token_file: o.AuthTokenFile = None
    cluster_key_file: o.ClusterKeyFile = None
    max_queue_wait_s: o.MaxQueueWait = None
    max_live_requests_per_token: o.MaxLivePerToken = None
    max_allowed_token_ids: o.MaxAllowedTokenIds = None
    write_timeout_s: o.WriteTimeout = None
    share_prefix_cache: o.SharePrefixCache = None
    ray_address: Annotated[
        str | None, typer.Option(help="auto (a running cluster, or start one), local, or HOST:PORT.")
    ] = None
    name: Annotated[str | None, typer.Option(help="Name of the cluster, unique among running ones.")] = None

    def given(self) -> dict[str, Any]:
        """Values by setting name; None for options that were not given."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """Each field is an option."""

    controller: Annotated[str, typer.Option(help="HOST:PORT of the controller.", callback=o.host_and_port)]
    host: Annotated[str, typer.Option(help="Host to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 50051
    http_port: Annotated[int, typer.Option(help="HTTP port; 0: off.")] = 8000
    http_host: Annotated[str | None, typer.Option(help="Host for HTTP. [--host]")] = None
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus metrics.")] = None
    health_port: o.HealthPort = None
    tls_cert: o.TlsCert = None
    tls_key: o.TlsKey = None
    tls_client_ca: o.TlsClientCa = None
    auth_token_file: o.AuthTokenFile = None
    cluster_key_file: o.ClusterKeyFile = None
    max_live_requests: Annotated[int, typer.Option(help="Maximum number of outputs in progress.")] = 1024
    max_queued_tokens: Annotated[int, typer.Option(help="Maximum number of queued prompt tokens.")] = 1_000_000
    max_queue_wait_s: o.MaxQueueWait = None
    max_live_requests_per_token: o.MaxLivePerToken = None
    max_message_bytes: Annotated[int, typer.Option(help="Maximum size of a request.")] = 4 * 2**20
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Maximum length of a prompt. [the model's]")] = None
    max_stop_strings: Annotated[int, typer.Option(help="Maximum number of stop strings per request.")] = 16
    max_logit_bias: Annotated[int, typer.Option(help="Maximum number of logit_bias entries per request.")] = 1024
    max_allowed_token_ids: o.MaxAllowedTokenIds = None
    max_schema_bytes: Annotated[int, typer.Option(help="Maximum size of a structured output's schema.")] = 64 * 2**10
    drain_grace_s: Annotated[float, typer.Option(help="Seconds that requests may run after SIGTERM.")] = 20.0
    resume_wait_s: Annotated[
        float, typer.Option(help="Seconds that requests of a lost replica wait for another one.")
    ] = 600.0
    write_timeout_s: o.WriteTimeout = None
    share_prefix_cache: o.SharePrefixCache = None
    otlp_endpoint: o.OtlpEndpoint = None
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", help="Drain when standard input closes.")] = False
