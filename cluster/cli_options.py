"""Options of the gateway's side that several commands share. Secrets come in files: a command line is no secret."""

from pathlib import Path
from typing import Annotated

import typer


def host_and_port(value: str) -> str:
    """An option's value as it is; BadParameter unless it is HOST:PORT, or another of gRPC's names (unix:/PATH, ...)."""
    host, _, port = value.rpartition(":")
    if "/" not in value and not (host and port.isdecimal() and int(port) <= 65535):
        raise typer.BadParameter(f"must be HOST:PORT, got {value!r}")
    return value


TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="The gateway's certificate (PEM): TLS from then on.")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="Its key (PEM). Both are read anew when they change.")]
TlsClientCa = Annotated[
    Path | None, typer.Option("--tls-client-ca", help="Clients must show a certificate that this one signed (PEM).")
]
AuthTokenFile = Annotated[
    Path | None, typer.Option("--auth-token-file", help="Who may call: see `outrider token`. Read anew when changed.")
]
HealthPort = Annotated[
    int | None, typer.Option("--health-port", help="A plain port for health checks alone, for probes beside TLS.")
]
ClusterKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster-key-file",
        allow_dash=True,
        help='The key that the cluster\'s own processes share; "-" reads it from standard input. [drawn by serve]',
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
        help="Send spans to this OpenTelemetry collector, http://HOST:PORT. [OTEL_EXPORTER_OTLP_ENDPOINT]",
    ),
]
