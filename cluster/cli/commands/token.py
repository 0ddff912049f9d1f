"""`outrider token`: creates a bearer token, prints it once, and adds its hash to the gateway's file."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.gateway.access.auth import NAME, Role, digest_of, parse_callers
from outrider.workers.types.errors import OutriderError

PREFIX = "or-"  # lets scanners for leaked secrets recognize it


def run_token(name: str, roles: Sequence[str], file: Path) -> None:
    """Appends to `file`, creating it if needed.

    Raises OutriderError if the file is invalid or has the name already, SettingsError for an invalid name or role.
    """
    _check(name, roles)
    token = f"{PREFIX}{secrets.token_urlsafe(32)}"
    line = f"{name} {','.join(roles)} sha256:{digest_of(token).hex()}\n"
    before = _read(file)
    parse_callers(before + line, str(file))
    try:
        file.touch(mode=0o600)
        file.write_text(before + line)
    except OSError as error:
        raise OutriderError(f"cannot write {file}: {error.strerror}") from error
    print(token)  # noqa: T201  # the command's output


def _check(name: str, roles: Sequence[str]) -> None:
    if NAME.fullmatch(name) is None:
        raise SettingsError(
            f"NAME must begin with a letter or digit, then at most 62 of these and . _ @ -, got {name!r}"
        )
    known = [role.value for role in Role]
    for role in roles:
        if role not in known:
            raise SettingsError(f"--role must be {' or '.join(known)}, got {role!r}")


def _read(file: Path) -> str:
    try:
        text = file.read_text() if file.exists() else ""
    except OSError as error:
        raise OutriderError(f"cannot read {file}: {error.strerror}") from error
    return text if not text or text.endswith("\n") else text + "\n"
