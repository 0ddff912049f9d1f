"""Copies fields between protobuf messages and our own types."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from outrider.cluster.api.errors import InvalidRequestError


def fill(message: Any, source: object, names: Iterable[str]) -> None:  # any message
    """Copies the fields that are not None. Raises InvalidRequestError, which names a field that does not fit."""
    for name in names:
        if (value := getattr(source, name)) is not None:
            with naming(name):
                setattr(message, name, value)


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """Raises InvalidRequestError, which names the field, if protobuf refuses the type, range or encoding of a value."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequestError(f"{field} cannot be sent: {error}") from error


def present(message: Any, names: Iterable[str]) -> dict[str, Any]:  # any message with optional fields
    """The fields that are set."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def named(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}
