"""Reads fields of a JSON file, with errors that name the file, the field and the value."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.workers.types.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and its origin. A field that is null counts as absent."""

    values: dict[str, Any]
    origin: str

    @classmethod
    def load(cls, path: Path) -> "Fields":
        try:
            values = json.loads(path.read_text())
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}")
        return cls(values, str(path))

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.origin}: {problem}")

    def integer(self, name: str, *, default: int | None = None, minimum: int = 0) -> int:
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{name} must be an integer, got {value!r}")
        if value < minimum:
            raise self.error(f"{name} must be at least {minimum}, got {value}")
        return value

    def number(self, name: str, *, default: float | None = None) -> float:
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"{name} must be a number, got {value!r}")
        return float(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self._present(name, default)
        if not isinstance(value, bool):
            raise self.error(f"{name} must be true or false, got {value!r}")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Non-negative integers: one, a list, or none if the field is absent."""
        value = self._present(name, [])
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in values):
            raise self.error(f"{name} must be a non-negative integer or a list of them, got {value!r}")
        return tuple(values)

    def group(self, name: str) -> "Fields":
        """The object under `name`; an empty one if it is absent."""
        value = self._present(name, {})
        if not isinstance(value, dict):
            raise self.error(f"{name} must be an object, got {value!r}")
        return Fields(value, f"{self.origin}: {name}")

    def _present(self, name: str, default: object) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise self.error(f"field {name} is missing")
        return value
