"""Tools (functions that a model may call) and tool calls. Names are OpenAI's; torch-free."""

import enum
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CHOICES = ("none", "auto", "required")
MAX_TOOLS = 256
CALL_TOKENS = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """`parameters`: a JSON schema of an object; None: the function takes none."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"tools: a name must be 1..128 of A-Z a-z 0-9 _ . -, got {self.name[:200]!r}")
        if self.parameters is not None and self.parameters.get("type", "object") != "object":
            raise ValueError(f"tools: the parameters of {self.name} must be of type object")

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of a call's arguments."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}

    def to_dict(self) -> dict[str, Any]:
        """The tool in the form that chat templates expect."""
        function: dict[str, Any] = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """A request's tools. `choice`: whether a call is allowed or required; `function`: the only one allowed, or ""."""

    tools: Sequence[Tool] = ()
    choice: str = "auto"
    function: str = ""
    parallel: bool = True  # several calls in one answer

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if len(names) > MAX_TOOLS:
            raise ValueError(f"tools must be at most {MAX_TOOLS}, got {len(names)}")
        if len(set(names)) != len(names):
            raise ValueError("tools must have distinct names")
        if self.choice not in CHOICES:
            raise ValueError(f"tool_choice must be one of {', '.join(CHOICES)} or a function, got {self.choice!r}")
        if self.function and self.function not in names:
            raise ValueError(f"tool_choice names {self.function[:200]!r}, which is not among the tools")
        if self.choice == "required" and not names:
            raise ValueError("tool_choice must be none or auto without tools")

    def __bool__(self) -> bool:
        return bool(self.tools)

    @property
    def callable(self) -> list[Tool]:
        """The tools that may be called."""
        if self.choice == "none":
            return []
        return [tool for tool in self.tools if self.function in ("", tool.name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that a model made. `arguments`: JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """New text of a call. The first delta of a call has its complete name."""

    index: int  # of the call in its output
    id: str = field(default="")
    name: str = ""
    arguments: str = ""


class Arguments(str):
    """A call's arguments for a template: a string, but `tojson` writes the object."""

    __slots__ = ()

    @property
    def value(self) -> Any:  # any JSON
        try:
            return json.loads(self)
        except (ValueError, RecursionError):
            return str(self)


class ToolFormat(enum.Enum):
    """How a model writes a call: `function SEP name, fenced JSON` (V3-0324, R1-0528), or `name SEP JSON` (V3.1)."""

    V3 = "deepseek_v3"
    V31 = "deepseek_v31"


@dataclass(frozen=True, slots=True)
class ToolTokens:
    """The ids of CALL_TOKENS."""

    calls_begin: int
    calls_end: int
    call_begin: int
    call_end: int
    sep: int
