"""Settings, each declared once: a dataclass field with its type, default, text and bounds.

    block_size: Annotated[int, Setting("Tokens in a block of the KV cache.", least=1)] = 16

The checks, LLM's parameters, the command line, the configuration file and the reference page are derived from these.
"""

import dataclasses
import functools
import inspect
import math
import os
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
REQUIRED = inspect.Parameter.empty  # the default of a setting that has none


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting's text and allowed values. If there are bounds, numbers within them are allowed besides `choices`."""

    text: str
    _: KW_ONLY
    choices: tuple[str | int | None, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    finite: bool = False
    pattern: str = ""

    @property
    def is_bounded(self) -> bool:
        return any(bound is not None for bound in (self.least, self.most, self.above))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredSetting:
    """A setting with its field's name, types and default."""

    name: str
    types: tuple[type, ...]
    default: Any
    setting: Setting
    group: type  # the class that declares it

    @property
    def text(self) -> str:
        return self.setting.text

    @property
    def values(self) -> str:
        """The allowed values, in words."""
        setting = self.setting
        words = [f"one of {', '.join(map(str, setting.choices))}"] if setting.choices else []
        if (int in self.types or float in self.types) and (setting.is_bounded or not setting.choices):
            words.append(self._numbers())
        if bool in self.types:
            words.append("True, False" if type(None) in self.types else "True or False")
        if Path in self.types:
            words.append("a path")
        if str in self.types and not setting.choices:
            words.append("text")
        if type(None) in self.types and None not in setting.choices:
            words.append("None")
        return " or ".join(words)

    def _numbers(self) -> str:
        setting, noun = self.setting, "an integer" if int in self.types else "a number"
        if setting.above is not None:
            at_most = f" and at most {setting.most}" if setting.most is not None else ""
            return f"{noun} above {setting.above}{at_most}"
        if setting.least is None:
            return noun
        if setting.most is not None:
            return f"{setting.least}..{setting.most}"
        return f"{noun} of at least {setting.least}"

    def checked(self, value: Any) -> Any:
        """The value converted to the field's type: path to text, text to path, or int to float.

        Raises ValueError that names the setting and its allowed values.
        """
        value = self._converted(value)
        if not self._is_allowed(value):
            raise ValueError(f"{self.name} must be {self.values}, got {value!r}")
        return value

    def _converted(self, value: Any) -> Any:
        if isinstance(value, os.PathLike) and str in self.types and Path not in self.types:
            return os.fspath(value)
        if isinstance(value, str) and value and Path in self.types:
            return Path(value)
        if type(value) is int and float in self.types and int not in self.types:
            return float(value)
        return value

    def _is_allowed(self, value: Any) -> bool:
        setting = self.setting
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            return False
        if setting.choices and not (isinstance(value, int | float) and setting.is_bounded):
            return value in setting.choices
        if isinstance(value, str):
            return not setting.pattern or re.fullmatch(setting.pattern, value) is not None
        return not isinstance(value, int | float) or self._is_in_bounds(value)

    def _is_in_bounds(self, value: float) -> bool:
        """False for NaN if there is a bound."""
        setting = self.setting
        return (
            (setting.least is None or value >= setting.least)
            and (setting.most is None or value <= setting.most)
            and (setting.above is None or value > setting.above)
            and (not setting.finite or math.isfinite(value))
        )


@functools.cache
def settings_of(kind: type) -> Mapping[str, DeclaredSetting]:
    """A dataclass's settings by name: its own first, then those of its base classes."""
    hints = get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return {
        name: DeclaredSetting(
            name=name,
            types=get_args(get_args(hints[name])[0]) or get_args(hints[name])[:1],
            default=REQUIRED if defaults[name] is dataclasses.MISSING else defaults[name],
            setting=get_args(hints[name])[1],
            group=group,
        )
        for group in kind.__mro__
        for name in inspect.get_annotations(group)
        if get_origin(hints.get(name)) is Annotated
    }


def check_settings(settings: Any) -> None:
    """Checks each value and converts it to its field's type. Raises ValueError for the first that is not allowed."""
    kind: type = type(settings)
    for name, declared in settings_of(kind).items():
        given = getattr(settings, name)
        if (value := declared.checked(given)) is not given:
            object.__setattr__(settings, name, value)  # the dataclass is frozen, and being initialised


def part_of(settings: Any, kind: type[T]) -> T:
    """An object of `kind`, with its fields' values taken from settings that have more."""
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]  # a dataclass
    return kind(**{field.name: getattr(settings, field.name) for field in fields})


def option_words(values: Mapping[str, Any]) -> list[str]:
    """The command-line options that set these values. True is an option without a value; None and False are omitted."""
    words = []
    for name, value in values.items():
        if value is not None and value is not False:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return words


def described(kind: type) -> str:
    """One line for each setting of a class, for a docstring."""
    return "\n".join(f"{name}: {one.text} Values: {one.values}." for name, one in settings_of(kind).items())
