"""Option groups that several commands share, as dataclasses."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each dataclass parameter replaced by one option per field."""
    kinds: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in inspect.signature(command).parameters.items()
        if dataclasses.is_dataclass(parameter.annotation)
    }

    @functools.wraps(command)
    def run(**given: Any) -> None:  # as typer calls it
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in kinds.items()
        }
        command(**given, **made)

    parameters = list(_offered(command))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect, and so typer, looks at
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _offered(command: Callable[..., None]) -> Iterator[inspect.Parameter]:
    for parameter in inspect.signature(command).parameters.values():
        whole = dataclasses.is_dataclass(parameter.annotation)
        own = inspect.signature(parameter.annotation).parameters.values() if whole else (parameter,)
        yield from (one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own)
