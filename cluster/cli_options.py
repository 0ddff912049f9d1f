"""Options that several commands share. Secrets come in files, never as values: a command line is no secret."""

from pathlib import Path
from typing import Annotated

import typer

_FILE = {"exists": True, "dir_okay": False, "readable": True}

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
OtlpEndpoint = Annotated[
    str | None,
    typer.Option(
        "--otlp-endpoint",
        help="Send spans to this OpenTelemetry collector, http://HOST:PORT. [OTEL_EXPORTER_OTLP_ENDPOINT]",
    ),
]
"""Options of the gateway's side."""

TraceParent = Annotated[
    str, typer.Option("--traceparent", envvar="TRACEPARENT", help="The span that asks, as W3C Trace Context has it.")
]
Address = Annotated[str, typer.Option("--address", envvar="OUTRIDER_ADDRESS", help="HOST:PORT of a gateway.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", envvar="OUTRIDER_TOKEN_FILE", help="A file that holds your bearer token.", **_FILE),
]
Tls = Annotated[bool, typer.Option("--tls", envvar="OUTRIDER_TLS", help="Use TLS, and trust this machine's CAs.")]
TlsCa = Annotated[
    Path | None,
    typer.Option("--tls-ca", envvar="OUTRIDER_TLS_CA", help="Use TLS, and trust this CA (PEM) alone.", **_FILE),
]
ClientCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", envvar="OUTRIDER_TLS_CERT", help="Your certificate, for mutual TLS (PEM).", **_FILE),
]
ClientKey = Annotated[Path | None, typer.Option("--tls-key", envvar="OUTRIDER_TLS_KEY", help="Its key (PEM).", **_FILE)]
ServerName = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        envvar="OUTRIDER_TLS_SERVER_NAME",
        help="The name in the gateway's certificate, if another.",
    ),
]
