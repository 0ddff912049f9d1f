"""From a command's options to a client of the gateway they name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.cluster.client import AsyncClient, Client
from outrider.cluster.client_security import ClientSecurity

_FILES = {"token_file": "token_file", "ca": "tls_ca", "cert": "tls_cert", "key": "tls_key"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A gateway, and how it is called."""

    address: str
    security: ClientSecurity

    def client(self) -> Client:
        return Client(self.address, self.security)

    def async_client(self) -> AsyncClient:
        return AsyncClient(self.address, self.security)


def connection(given: Mapping[str, Any]) -> Connection:
    """`given`: a command's options by name. InvalidRequestError names a file that cannot be read."""
    paths = {name: Path(given[option]) for name, option in _FILES.items() if given[option] is not None}
    security = ClientSecurity.from_files(**paths, tls=given["tls"], server_name=given["tls_server_name"])
    return Connection(address=given["address"], security=security)
