"""The served model, as controllers, gateways and clients see it."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Replicas with equal fingerprints produce the same text."""

    fingerprint: str
    max_model_len: int
    vocab_size: int
    dtype: str
    numerics: str
    speculation: str  # the ceiling: "auto", "off" or a number
    has_mtp: bool


def served_model_fields(source: Any) -> dict[str, Any]:
    """ServedModel's fields, taken from an object or message that has more."""
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(ServedModel)}
