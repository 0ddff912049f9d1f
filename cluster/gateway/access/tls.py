"""The gateway's certificate: checked when loaded, and reloaded for the next handshake when its files change."""

import ssl

import grpc

from outrider.cluster.gateway.access.settings import TlsFiles
from outrider.cluster.gateway.access.watched import Watched
from outrider.workers.types.errors import OutriderError

_ATTEMPTS = 3  # to read the files while they are being replaced


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Raises OutriderError if a file is missing or damaged, or if the key does not match the certificate."""
    watched = Watched(files.paths, lambda: _configuration(files))

    def fetch() -> grpc.ServerCertificateConfiguration:
        """gRPC calls this before each handshake, in another thread."""
        return watched.value

    return grpc.dynamic_ssl_server_credentials(
        watched.value, fetch, require_client_authentication=files.client_ca is not None
    )


def ssl_context(files: TlsFiles) -> ssl.SSLContext:
    """For HTTP. Each handshake uses the current files. Raises the same errors as `server_credentials`."""
    watched = Watched(files.paths, lambda: _context(files))

    def refresh(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = watched.value

    context = _context(files)
    context.sni_callback = refresh
    return context


def _context(files: TlsFiles) -> ssl.SSLContext:
    _configuration(files)  # raises if they are invalid
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key, password=_no_password)
    context.set_alpn_protocols(["http/1.1"])
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """Reads and checks the files. Reads them twice, so that they are consistent even if they are being replaced."""
    for _ in range(_ATTEMPTS):
        before = _read_all(files)
        _check(files)
        if _read_all(files) == before:
            cert, key, *client_ca = before
            return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca[0] if client_ca else None)
    raise OutriderError(f"the files of {files.cert} keep changing while they are read")


def _read_all(files: TlsFiles) -> list[bytes]:
    try:
        return [path.read_bytes() for path in files.paths]
    except OSError as error:
        raise OutriderError(f"cannot read {error.filename}: {error.strerror}") from error


def _check(files: TlsFiles) -> None:
    """gRPC would accept invalid files, and then fail every handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise OutriderError(
            f"--tls-cert {files.cert} and --tls-key {files.key} are not a PEM pair ({reason})"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise OutriderError(f"--tls-client-ca {files.client_ca} has no PEM certificate") from error


def _no_password() -> str:
    """Keeps OpenSSL from prompting on the terminal."""
    raise ValueError("the key is encrypted: use one without a passphrase")
