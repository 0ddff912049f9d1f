"""Chat templates, rendered as transformers' `apply_chat_template` renders them. Knows nothing of token ids."""

import datetime
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.requests.tools import Arguments

_ROLES = ("system", "user", "assistant", "tool")
_OURS = ("messages", "tools", "documents", "add_generation_prompt")  # arguments cannot replace these


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replaces Jinja's own filter, which escapes HTML."""
    if isinstance(value, Arguments):
        value = value.value
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


class ChatTemplate:
    """One checkpoint's template. Templates come with the weights, so they run in Jinja's sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: names as in tokenizer_config.json (bos_token, eos_token, ...) to their text."""
        self._special_tokens = dict(special_tokens)
        try:
            environment = _environment()
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source)))
            self._template = environment.from_string(source)
            self._source = source
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the checkpoint's chat template is damaged: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] = MappingProxyType({}),
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Renders the conversation as one prompt. `arguments`: additional variables for the template.

        Raises ValueError if there are no messages, or if the template rejects them.
        """
        if not messages:
            raise ValueError("messages must not be empty")
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise ValueError(f"messages[{number}] must be a mapping with a role and a content, got {message!r}")
            if not self._knows(message.get("role")):
                role = str(message.get("role"))[:100]
                raise ValueError(f"messages[{number}].role must be one of {', '.join(_ROLES)}, got {role!r}")
        try:
            return self._template.render(
                **{
                    **self._special_tokens,
                    **{name: value for name, value in arguments.items() if name not in _OURS},
                    "messages": [dict(message) for message in messages],
                    "tools": list(tools) or None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                },
            )
        except (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            # other errors than Jinja's come from values of a type that the template does not expect
            raise ValueError(f"messages do not suit the checkpoint's chat template: {error}") from error

    def _knows(self, role: object) -> bool:
        """Whether a template takes the role: templates leave out messages of roles that they do not know."""
        return role in _ROLES or f"'{role}'" in self._source or f'"{role}"' in self._source
