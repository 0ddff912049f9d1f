"""A base class that makes a class with `close` a context manager."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class ClosedOnExit(ABC):
    """A context manager that calls `close` on exit."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Called at the end of the `with` block, also after an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
