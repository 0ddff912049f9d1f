"""Access settings of a gateway: certificate, token file, port for health checks without TLS."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from outrider.workers.types.settings import Setting, check_settings, option_words


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files. With `client_ca` clients must have a certificate that it signed (mutual TLS)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.cert, self.key, *([self.client_ca] if self.client_ca else []))


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Contains paths only; the secrets are read where they are used."""

    tls_cert: Annotated[Path | None, Setting("Certificate of the gateway (PEM); turns TLS on.")] = None
    tls_key: Annotated[Path | None, Setting("Key of the certificate (PEM). Both are reloaded when they change.")] = None
    tls_client_ca: Annotated[
        Path | None, Setting("CA (PEM) that must have signed the clients' certificates: mutual TLS.")
    ] = None
    auth_token_file: Annotated[
        Path | None, Setting("File of bearer tokens, see `outrider token`. Reloaded when it changes.")
    ] = None
    health_port: Annotated[
        int | None, Setting("Port for health checks without TLS or tokens; 0: any free one.", least=0, most=65535)
    ] = None

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.tls_cert is None) != (self.tls_key is None):
            absent = "tls_key" if self.tls_key is None else "tls_cert"
            raise ValueError(f"tls_cert and tls_key must be given together: {absent} is missing")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca requires tls_cert and tls_key")

    def arguments(self) -> list[str]:
        """These settings as options of `outrider gateway`."""
        return option_words(dataclasses.asdict(self))

    @property
    def tls(self) -> TlsFiles | None:
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(cert=self.tls_cert, key=self.tls_key, client_ca=self.tls_client_ca)

    def weakness(self, host: str) -> str:
        """A warning if `host` is reachable from other machines and access is not restricted or encrypted; else ""."""
        if host in ("127.0.0.1", "::1", "localhost"):
            return ""
        if self.auth_token_file is None and self.tls_client_ca is None:
            return f"every client that reaches {host} may call every method: use --auth-token-file or --tls-client-ca"
        if self.tls_cert is None:
            return f"tokens and texts are sent to {host} unencrypted: use --tls-cert and --tls-key"
        return ""
