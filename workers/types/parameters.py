"""Copies the parameters of a class or function to a method, so that they are declared once."""

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


def parameters_of(
    declared: Callable[P, object], text: str = ""
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Sets the method's signature, for type checkers, editors and `help`. `text` is added to its docstring."""

    def give(method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        types = get_type_hints(declared)  # without Setting annotations
        given = [one.replace(annotation=types[name]) for name, one in inspect.signature(declared).parameters.items()]
        own = inspect.signature(method)
        this = next(iter(own.parameters.values()))
        signature = own.replace(parameters=[this.replace(kind=this.POSITIONAL_ONLY), *given])
        method.__signature__ = signature  # type: ignore[attr-defined]  # what inspect and editors look at
        method.__doc__ = "\n".join(filter(None, (method.__doc__, text)))
        return method

    return give
