"""Constraints on an output's text. Names are vLLM's; imports neither torch nor the grammar library."""

import json as jsonlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MAX_SOURCE_BYTES = 64 * 1024  # of a schema, a regex, a grammar, or all choices
MAX_CHOICES = 1024
_CONSTRAINTS = ("json", "json_object", "regex", "grammar", "choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """Exactly one constraint. `json` is a JSON schema, `grammar` a Lark or GBNF grammar, `choice` a list of texts."""

    json: str | Mapping[str, Any] | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: list[str] | None = None
    disable_any_whitespace: bool = False  # between the tokens of JSON
    whitespace_pattern: str | None = None  # a regex for the whitespace between JSON tokens

    def __post_init__(self) -> None:
        given = [name for name in _CONSTRAINTS if getattr(self, name) not in (None, False) or name == self._false_json]
        if len(given) != 1:
            raise _refusal(f"must have exactly one of {', '.join(_CONSTRAINTS)}, got {', '.join(given) or 'none'}")
        self._check_types()
        size = len(self.source.encode(errors="surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            raise _refusal(f"{given[0]} must be at most {MAX_SOURCE_BYTES} bytes, got {size}")

    @property
    def _false_json(self) -> str | None:
        """Treats the JSON schema `false` as given."""
        return "json" if self.json is False else None

    def _check_types(self) -> None:
        for name in ("regex", "grammar", "whitespace_pattern"):
            if (value := getattr(self, name)) is not None and (not isinstance(value, str) or not value):
                raise _refusal(f"{name} must be a text that is not empty, got {value!r}")
        if self.json is not None and not isinstance(self.json, str | Mapping | bool):
            raise _refusal(f"json must be a JSON schema, got {self.json!r}")
        if self.choice is not None:
            listed = isinstance(self.choice, list | tuple) and all(isinstance(text, str) for text in self.choice)
            if not listed or not 1 <= len(self.choice) <= MAX_CHOICES or not all(self.choice):
                raise _refusal(f"choice must be 1..{MAX_CHOICES} texts, none of them empty")

    @property
    def source(self) -> str:
        """The constraint as text."""
        if self.json is not None:
            return self.json if isinstance(self.json, str) else jsonlib.dumps(self.json)
        if self.choice is not None:
            return jsonlib.dumps(list(self.choice))
        return self.regex or self.grammar or jsonlib.dumps({"type": "object"})

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value not in (None, False) or name == self._false_json
        }

    @classmethod
    def of(cls, given: object) -> "StructuredOutputsParams":
        """Returns `given`, or makes an object from a mapping. Errors begin with `structured_outputs`."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise ValueError(f"structured_outputs must be StructuredOutputsParams or a mapping, got {given!r}")
        unknown = [name for name in given if name not in cls.__dataclass_fields__]
        if unknown:
            raise _refusal(f"has no {unknown[0]!r}: it knows {', '.join(cls.__dataclass_fields__)}")
        return cls(**given)


def _refusal(problem: str) -> ValueError:
    return ValueError(f"structured_outputs {problem}")
