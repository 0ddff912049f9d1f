"""W3C Trace Context: parses and writes the two headers that name a request's trace. No network, no exporter."""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

PARENT, STATE = "traceparent", "tracestate"
_PARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_MOST_MEMBERS = 32
_KNOWN_FLAGS = 0b11  # sampled; the trace's id is random


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """A span of a trace, as the parent of further spans."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    flags: int = 0
    state: str = ""  # vendors' data; "" if absent or malformed

    @classmethod
    def new(cls) -> Self:
        """The root of a new trace."""
        return cls(trace_id=secrets.token_hex(16), span_id=secrets.token_hex(8))

    @classmethod
    def parse(cls, parent: str, state: str = "") -> Self | None:
        """None if `parent` is malformed. Of later versions, the fields known to this version are used."""
        found = _PARENT.fullmatch(parent)
        if found is None or found["version"] == "ff" or (found["version"] == "00" and found["more"]):
            return None
        if not int(found["trace"], 16) or not int(found["span"], 16):
            return None
        flags = int(found["flags"], 16) & _KNOWN_FLAGS
        return cls(trace_id=found["trace"], span_id=found["span"], flags=flags, state=_checked(state))

    @classmethod
    def of(cls, metadata: Iterable[Any]) -> Self | None:
        """From a call's metadata. None without a valid `traceparent`, or with several."""
        pairs = [(key, value) for key, value in metadata if isinstance(value, str)]
        parents = [value for key, value in pairs if key == PARENT]
        states = ",".join(value for key, value in pairs if key == STATE)
        return cls.parse(parents[0], states) if len(parents) == 1 else None

    @property
    def parent(self) -> str:
        """The header `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers for calls to other services."""
        return ((PARENT, self.parent), *([(STATE, self.state)] if self.state else []))


def _checked(state: str) -> str:
    """The state without empty members; "" if a member is malformed or duplicated, or if there are too many."""
    members = [member for member in (one.strip(" \t") for one in state.split(",")) if member]
    names = {member.partition("=")[0] for member in members}
    whole = len(names) == len(members) <= _MOST_MEMBERS and all(_MEMBER.fullmatch(member) for member in members)
    return ",".join(members) if whole else ""
