"""A client's credentials, and the CAs it trusts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from outrider.cluster.api.errors import InvalidRequestError

Options = tuple[tuple[str, Any], ...]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSecurity:
    """By default no TLS and no token. Certificates and keys are PEM bytes."""

    token: str | None = field(default=None, repr=False)
    tls: bool = False  # also enabled by any of the fields below
    ca: bytes | None = None  # None: the system's CAs
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None  # the name in the gateway's certificate, if it differs from the address

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidRequestError("a client's certificate and key must be given together")
        if self.token is not None and (not self.token or not self.token.isascii() or not self.token.isprintable()):
            raise InvalidRequestError("token must be one line of printable characters")

    @classmethod
    def from_files(
        cls,
        *,
        token_file: Path | None = None,
        tls: bool = False,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        server_name: str | None = None,
    ) -> Self:
        """Raises InvalidRequestError, which names the file, if a file cannot be read."""
        token = _read(token_file)
        return cls(
            token=token.decode(errors="replace").strip() if token is not None else None,
            tls=tls,
            ca=_read(ca),
            cert=_read(cert),
            key=_read(key),
            server_name=server_name,
        )

    @property
    def metadata(self) -> Metadata:
        """The metadata of each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    @property
    def uses_tls(self) -> bool:
        return self.tls or self.ca is not None or self.cert is not None

    def channel(self, address: str, options: Options) -> grpc.Channel:
        if not self.uses_tls:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, self._credentials(), options=(*options, *self._name()))

    def aio_channel(self, address: str, options: Options) -> grpc.aio.Channel:
        if not self.uses_tls:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials(), options=(*options, *self._name()))

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)

    def _name(self) -> Options:
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error
