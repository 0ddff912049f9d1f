"""The model that is served, as controllers, gateways and clients know it."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Replicas of one fingerprint give the same text."""

    fingerprint: str
    max_model_len: int
    vocab_size: int
    dtype: str
    numerics: str
    speculation: str  # the ceiling: "auto", "off" or a number
    has_mtp: bool


def served_model_fields(source: Any) -> dict[str, Any]:
    """ServedModel's fields, of a class or a message that has more."""
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(ServedModel)}
