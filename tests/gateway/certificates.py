"""Certificates made on the spot: an authority, what it signs, and what has expired."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme

from outrider.cluster.client.security import ClientSecurity
from outrider.cluster.gateway.access.settings import AccessSettings

SERVER = "gateway.test"


@dataclass
class Issued:
    """A certificate and its key as files."""

    cert: Path
    key: Path


class Authority:
    """Signs for servers and clients, into a directory of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, not_after: datetime.datetime | None = None) -> Issued:
        issued = Issued(cert=self._folder / f"{name}.pem", key=self._folder / f"{name}.key")
        made = self._ca.issue_cert(name, not_after=not_after)
        issued.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(issued.key))
        return issued

    def expired(self, name: str) -> Issued:
        return self.issue(name, datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1))


def access(authority: Authority, *, client_ca: Authority | None = None, **options: object) -> AccessSettings:
    issued = authority.issue(SERVER)
    ca = client_ca.file if client_ca else None
    return AccessSettings(tls_cert=issued.cert, tls_key=issued.key, tls_client_ca=ca, **options)


def client(authority: Authority | None, issued: Issued | None = None, token: str | None = None) -> ClientSecurity:
    """What a client needs that trusts `authority` and shows `issued`."""
    return ClientSecurity(
        token=token,
        ca=authority.file.read_bytes() if authority else None,
        cert=issued.cert.read_bytes() if issued else None,
        key=issued.key.read_bytes() if issued else None,
        server_name=SERVER if authority else None,
    )
