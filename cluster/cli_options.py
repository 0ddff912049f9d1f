"""Options of the gateway that several commands share. Secrets come in files, since others can see a command line."""

from pathlib import Path
from typing import Annotated

import typer


def host_and_port(value: str) -> str:
    """The value, unchanged. BadParameter unless it is HOST:PORT or another gRPC address (unix:/PATH, ...)."""
    host, _, port = value.rpartition(":")
    if "/" not in value and not (host and port.isdecimal() and int(port) <= 65535):
        raise typer.BadParameter(f"must be HOST:PORT, got {value!r}")
    return value


TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="Certificate of the gateway (PEM); turns TLS on.")]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", help="Key of the certificate (PEM). Both are reloaded when they change.")
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option("--tls-client-ca", help="CA (PEM) that must have signed the clients' certificates: mutual TLS."),
]
AuthTokenFile = Annotated[
    Path | None,
    typer.Option("--auth-token-file", help="File of bearer tokens, see `outrider token`. Reloaded when it changes."),
]
HealthPort = Annotated[int | None, typer.Option("--health-port", help="Port for health checks without TLS or tokens.")]
ClusterKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster-key-file",
        allow_dash=True,
        help='File with the key that the cluster\'s processes share; "-": standard input. [random]',
    ),
]
MaxQueueWait = Annotated[
    float | None,
    typer.Option("--max-queue-wait-s", help="A request that would wait longer for its turn is refused. [10]"),
]
MaxLivePerToken = Annotated[
    int | None,
    typer.Option("--max-live-requests-per-token", help="More outputs of one token at once are refused. [no limit]"),
]
MaxAllowedTokenIds = Annotated[
    int | None, typer.Option("--max-allowed-token-ids", help="More in one request are refused. [16384]")
]
WriteTimeout = Annotated[
    float | None,
    typer.Option("--write-timeout-s", help="How long a client may read nothing of what it is sent. [20]"),
]
SharePrefixCache = Annotated[
    bool | None,
    typer.Option(
        "--share-prefix-cache/--prefix-cache-per-token",
        help="Whether tokens share cached prefixes, and so can tell by time what others have asked. [per token]",
    ),
]
OtlpEndpoint = Annotated[
    str | None,
    typer.Option(
        "--otlp-endpoint",
        help="OpenTelemetry collector for spans and metrics, http://HOST:PORT. [OTEL_EXPORTER_OTLP_ENDPOINT]",
    ),
]
