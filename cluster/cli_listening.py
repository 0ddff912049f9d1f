"""The options of the commands that listen, `serve` and `gateway`, apart from what they start, which loads slowly.

What is absent of `serve`'s is left to its settings; a gateway's defaults stand here.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.cluster import cli_options as o


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Settings that have an option of their own; each field is one."""

    model: Annotated[str | None, typer.Option(help="scout, or a checkpoint's directory.")] = None
    tensor_parallel_size: Annotated[int | None, typer.Option(help="Ranks that each layer is split over.")] = None
    pipeline_parallel_size: Annotated[int | None, typer.Option(help="Stages that the layers are split into.")] = None
    expert_parallel_size: Annotated[
        int | None, typer.Option(help="1, or data x tensor: whole experts spread over a stage's ranks.")
    ] = None
    data_parallel_size: Annotated[
        int | None, typer.Option(help="Groups of ranks that attend to sequences of their own.")
    ] = None
    replicas: Annotated[int | None, typer.Option(help="Copies of the model; `outrider scale` changes it. [1]")] = None
    speculation: Annotated[str | None, typer.Option(help="auto, off, or drafts a round (1..16).")] = None
    host: Annotated[str | None, typer.Option(help="Where the gateway listens; loopback by default.")] = None
    port: Annotated[int | None, typer.Option(help="The gateway's port; 0 takes a free one. [50051]")] = None
    http_port: Annotated[int | None, typer.Option(help="The gateway's port for HTTP; 0: off. [8000]")] = None
    http_host: Annotated[str | None, typer.Option(help="Where it listens for HTTP. [as --host]")] = None
    metrics_port: Annotated[int | None, typer.Option(help="Serve the gateway's Prometheus metrics here.")] = None
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
        str | None, typer.Option(help="auto (a running cluster, else one started here), local, or HOST:PORT.")
    ] = None
    name: Annotated[str | None, typer.Option(help="The cluster's name; one run at a time has it.")] = None

    def given(self) -> dict[str, Any]:
        """By the settings' names; None where an option was not given."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """Each field is an option."""

    controller: Annotated[str, typer.Option(help="HOST:PORT of the controller.", callback=o.host_and_port)]
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 50051
    http_port: Annotated[int, typer.Option(help="For HTTP; 0: off.")] = 8000
    http_host: Annotated[str | None, typer.Option(help="Where to listen for HTTP. [as --host]")] = None
    metrics_port: Annotated[int | None, typer.Option(help="Serve Prometheus metrics here.")] = None
    health_port: o.HealthPort = None
    tls_cert: o.TlsCert = None
    tls_key: o.TlsKey = None
    tls_client_ca: o.TlsClientCa = None
    auth_token_file: o.AuthTokenFile = None
    cluster_key_file: o.ClusterKeyFile = None
    max_live_requests: Annotated[int, typer.Option(help="More outputs at once are refused.")] = 1024
    max_queued_tokens: Annotated[int, typer.Option(help="Prompt tokens that may wait; more are refused.")] = 1_000_000
    max_queue_wait_s: o.MaxQueueWait = None
    max_live_requests_per_token: o.MaxLivePerToken = None
    max_message_bytes: Annotated[int, typer.Option(help="A larger request is refused unread.")] = 4 * 2**20
    max_prompt_tokens: Annotated[int | None, typer.Option(help="A longer prompt is refused. [the model's]")] = None
    max_stop_strings: Annotated[int, typer.Option(help="More in one request are refused.")] = 16
    max_logit_bias: Annotated[int, typer.Option(help="More entries in one request are refused.")] = 1024
    max_allowed_token_ids: o.MaxAllowedTokenIds = None
    max_schema_bytes: Annotated[int, typer.Option(help="A larger structured output is refused.")] = 64 * 2**10
    drain_grace_s: Annotated[float, typer.Option(help="How long requests may go on after SIGTERM.")] = 20.0
    resume_wait_s: Annotated[
        float, typer.Option(help="How long requests of a lost replica wait for another to go on with them.")
    ] = 600.0
    write_timeout_s: o.WriteTimeout = None
    share_prefix_cache: o.SharePrefixCache = None
    otlp_endpoint: o.OtlpEndpoint = None
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", help="Drain when standard input closes.")] = False
