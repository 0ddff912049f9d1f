"""The context manager of a class with `close`."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class ClosedOnExit(ABC):
    """`with` closes it at the end."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Called at the end of `with`, also after an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
