"""Authentication with bearer tokens, stored as hashes, and the roles that each method requires."""

import enum
import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from outrider.cluster.api.health import CLUSTER, INFERENCE, REFLECTIONS
from outrider.cluster.gateway.access.watched import Watched
from outrider.workers.serving.rpc.cluster_key import HEALTH, Continuation, refusal
from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.gateway.auth")

CALLER: ContextVar[str] = ContextVar("caller", default="")  # name of the current call's token
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")  # valid caller names
_LINE = re.compile(rf"(?P<name>{NAME.pattern})\s+(?P<roles>[a-z,]+)\s+sha256:(?P<digest>[0-9a-f]{{64}})")


class Role(enum.Enum):
    """What a token permits. A token may have both roles."""

    INFERENCE = "inference"  # generate text, get the model's description
    ADMIN = "admin"  # read and change the cluster


ANY_ROLE = frozenset(Role)
_ROLES: Mapping[str, frozenset[Role]] = {
    f"/{INFERENCE}/": frozenset({Role.INFERENCE}),
    f"/{CLUSTER}/GetModel": ANY_ROLE,
    **{f"/{service}/": ANY_ROLE for service in REFLECTIONS},
}


def roles_for(method: str) -> frozenset[Role]:
    """The roles of which a caller needs one. Methods that are not listed require the admin role."""
    return next((roles for start, roles in _ROLES.items() if method.startswith(start)), frozenset({Role.ADMIN}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The owner of a token."""

    name: str
    roles: frozenset[Role]
    digest: bytes  # SHA-256 of the token; 256 random bits need no slower hash


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def parse_callers(text: str, source: str) -> tuple[Caller, ...]:
    """Parses lines of NAME ROLE[,ROLE] sha256:HEX; empty lines and # comments are skipped.

    Raises OutriderError, which names the line, if a line is invalid. Without callers every call is refused.
    """
    callers: dict[str, Caller] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            caller = _parse(line.strip(), f"{source} line {number}")
            if caller.name in callers:
                raise OutriderError(f"{source} line {number}: duplicate name {caller.name}")
            callers[caller.name] = caller
    return tuple(callers.values())


def _parse(line: str, where: str) -> Caller:
    found = _LINE.fullmatch(line)
    if found is None:  # the message does not quote the line, which may be a token
        raise OutriderError(f"{where} is not NAME ROLE[,ROLE] sha256:HEX (create one with `outrider token`)")
    known = {role.value: role for role in Role}
    names = found["roles"].split(",")
    for name in names:
        if name not in known:
            raise OutriderError(f"{where}: role must be {' or '.join(known)}, got {name!r}")
    return Caller(
        name=found["name"], roles=frozenset(known[name] for name in names), digest=bytes.fromhex(found["digest"])
    )


def first_callers(path: Path) -> tuple[Caller, ...]:
    """For startup. Raises OutriderError if the file is invalid, missing, or has no token."""
    callers = load_callers(path)
    if not path.exists():
        raise OutriderError(f"cannot read {path}: it does not exist")
    if not callers:
        raise OutriderError(f"{path} has no token, so every call would be refused (create one with `outrider token`)")
    return callers


def load_callers(path: Path) -> tuple[Caller, ...]:
    """Empty if the file is empty or missing. Raises OutriderError if it cannot be read or has an invalid line."""
    try:
        return parse_callers(path.read_text(), str(path))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise OutriderError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def caller_of(token: str, callers: tuple[Caller, ...]) -> Caller | None:
    """Compares with every caller in constant time, so that the response time reveals nothing about the tokens."""
    digest, found = digest_of(token), None
    for caller in callers:
        if hmac.compare_digest(caller.digest, digest):
            found = caller
    return found


class RefusedError(Exception):
    """A call that is not permitted. `code` is UNAUTHENTICATED or PERMISSION_DENIED."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Authenticator(grpc.aio.ServerInterceptor):
    """Permits a call if its bearer token has a role for the method. Health checks need no token."""

    def __init__(self, path: Path, on_refusal: Callable[[str], None] = lambda status: None) -> None:
        """Raises OutriderError if the token file is invalid. Later changes take effect at the next call."""
        first_callers(path)
        self._callers = Watched([path], lambda: load_callers(path))
        self._on_refusal = on_refusal

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        if method.startswith(HEALTH):
            return await continuation(details)
        try:
            self.admit(_bearer_token(details), method, roles_for(method))
        except RefusedError as error:
            return refusal(error.code, str(error))
        return await continuation(details)

    def admit(self, token: str, method: str, wanted: frozenset[Role]) -> None:
        """Sets CALLER for the current call. Raises RefusedError if the token has none of the `wanted` roles."""
        caller = caller_of(token, self._callers.value)
        if caller is None:
            message = "no valid token: send authorization: Bearer TOKEN"
            raise self._refused(grpc.StatusCode.UNAUTHENTICATED, message, method, "")
        if not wanted & caller.roles:
            roles = " or ".join(sorted(role.value for role in wanted))
            message = f"{caller.name} may not call {method}: it needs the role {roles}"
            raise self._refused(grpc.StatusCode.PERMISSION_DENIED, message, method, caller.name)
        level = logging.INFO if wanted == {Role.ADMIN} else logging.DEBUG
        logs.event(log, level, "call permitted", method=method, caller=caller.name)
        CALLER.set(caller.name)

    def _refused(self, code: grpc.StatusCode, message: str, method: str, name: str) -> "RefusedError":
        self._on_refusal(code.name.lower())
        logs.event(log, logging.INFO, "call refused", method=method, status=code.name.lower(), caller=name)
        return RefusedError(code, message)


def _bearer_token(details: grpc.HandlerCallDetails) -> str:
    """The call's bearer token; "" if there is none, which never is a valid token."""
    given = next((value for key, value in details.invocation_metadata or () if key == "authorization"), "")
    return bearer_of(str(given))


def bearer_of(authorization: str) -> str:
    """The token of an `authorization` header; "" if it has none."""
    kind, _, token = authorization.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
