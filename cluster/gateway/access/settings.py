"""Who may call a gateway: its certificate, the tokens it takes, where it answers plain health checks."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files. With `client_ca` a client must show a certificate that it signed (mutual TLS)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.cert, self.key, *([self.client_ca] if self.client_ca else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Paths only: the secrets themselves are read by whoever uses them."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    auth_token_file: Path | None = None
    health_port: int | None = None  # a plain listener for health checks alone; 0: a free one

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            absent = "tls_key" if self.tls_key is None else "tls_cert"
            raise ValueError(f"tls_cert and tls_key go together: {absent} is not given")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.health_port is not None and not 0 <= self.health_port <= 65535:
            raise ValueError(f"health_port must be 0..65535, got {self.health_port}")

    def arguments(self) -> list[str]:
        """The options of `outrider gateway` that say the same."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        options = [(f"--{name.replace('_', '-')}", value) for name, value in given.items() if value is not None]
        return [word for option, value in options for word in (option, str(value))]

    @property
    def tls(self) -> TlsFiles | None:
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(cert=self.tls_cert, key=self.tls_key, client_ca=self.tls_client_ca)

    def weakness(self, host: str) -> str:
        """What whoever reaches `host` can do or read, if that is more than this machine; "" if nothing."""
        if host in ("127.0.0.1", "::1", "localhost"):
            return ""
        if self.auth_token_file is None and self.tls_client_ca is None:
            return f"whoever reaches {host} may call everything: give --auth-token-file, or --tls-client-ca"
        if self.tls_cert is None:
            return f"tokens and texts travel to {host} in plain: give --tls-cert and --tls-key"
        return ""
