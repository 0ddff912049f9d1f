"""Options that name a gateway. Secrets are read from files, since a command line is visible to others."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outrider.cluster.cli.options import host_and_port

if TYPE_CHECKING:  # they load slowly
    from outrider.cluster.client.async_client import AsyncClient
    from outrider.cluster.client.client import Client
    from outrider.cluster.client.security import ClientSecurity

_FILE = {"exists": True, "dir_okay": False, "readable": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Address and credentials of a gateway; each field is an option.

    The clients read the files, and raise InvalidRequestError if one cannot be read.
    """

    address: Annotated[
        str,
        typer.Option("--address", envvar="OUTRIDER_ADDRESS", help="HOST:PORT of a gateway.", callback=host_and_port),
    ] = "127.0.0.1:50051"
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", envvar="OUTRIDER_TOKEN_FILE", help="File with your bearer token.", **_FILE),
    ] = None
    tls: Annotated[bool, typer.Option("--tls", envvar="OUTRIDER_TLS", help="Use TLS with the system's CAs.")] = False
    tls_ca: Annotated[
        Path | None,
        typer.Option("--tls-ca", envvar="OUTRIDER_TLS_CA", help="Use TLS with this CA (PEM) only.", **_FILE),
    ] = None
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert", envvar="OUTRIDER_TLS_CERT", help="Client certificate for mutual TLS (PEM).", **_FILE
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", envvar="OUTRIDER_TLS_KEY", help="Key of the client certificate (PEM).", **_FILE),
    ] = None
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            "--tls-server-name",
            envvar="OUTRIDER_TLS_SERVER_NAME",
            help="Name in the gateway's certificate, if it differs from the address.",
        ),
    ] = None

    def client(self) -> "Client":
        from outrider.cluster.client.client import Client

        return Client(self.address, self._security())

    def async_client(self) -> "AsyncClient":
        from outrider.cluster.client.async_client import AsyncClient

        return AsyncClient(self.address, self._security())

    def _security(self) -> "ClientSecurity":
        from outrider.cluster.client.security import ClientSecurity

        return ClientSecurity.from_files(
            token_file=self.token_file,
            tls=self.tls,
            ca=self.tls_ca,
            cert=self.tls_cert,
            key=self.tls_key,
            server_name=self.tls_server_name,
        )
