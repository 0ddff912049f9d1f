"""A checkpoint's tokenizer: text to token ids and back, chat messages to a prompt. Byte-level BPE, as in DeepSeek."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from outrider.workers.text.chat import ChatTemplate
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.fields import Fields
from outrider.workers.types.requests.tools import CALL_TOKENS, ToolFormat, ToolTokens

_TEMPLATES = Path(__file__).parent / "templates"  # with tools, for checkpoints whose own templates ignore tools
_ASSISTANT = "<｜Assistant｜>"
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _alphabet() -> dict[str, int]:
    """The byte of each character in byte-level BPE (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _alphabet()


def _text_of(token: object) -> str | None:
    """The text of a special token in tokenizer_config.json, which is a string, an object with `content`, or null."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _after_assistant(chat: ChatTemplate) -> str:
    """The text that the template adds after the assistant token at the end of a prompt: `<think>`, or nothing."""
    _, found, after = chat.render([{"role": "user", "content": "x"}]).rpartition(_ASSISTANT)
    return after if found else ""


def _check_vocabulary(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """Checks that the model has all token ids. It may have more (DeepSeek pads its embedding)."""
    config = folder / "config.json"
    if not config.is_file():
        return
    highest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    size = Fields.load(config).integer("vocab_size", minimum=1)
    if highest >= size:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has token ids up to {highest}, but config.json has vocab_size = {size}:"
            " this is another model's tokenizer"
        )


class Tokenizer:
    """A checkpoint's tokenizer. Thread-safe."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any], template: str | None = None) -> None:
        """`settings`: the content of tokenizer_config.json."""
        self._backend = backend
        self._special_ids = frozenset(n for n, t in backend.get_added_tokens_decoder().items() if t.special)
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str] = {}
        special = {name: text for name in _SPECIAL_NAMES if (text := _text_of(settings.get(name)))}
        self._missing_bos = self._find_missing_bos(special.get("bos_token"), bool(settings.get("add_bos_token")))
        self._chat = None if template is None else ChatTemplate(template, special)
        self.tool_tokens = self._find_tool_tokens()
        thinks = self._chat is not None and "thinking" in self._chat.variables
        self.tool_format = ToolFormat.V31 if thinks else ToolFormat.V3  # how it writes calls
        self._tool_chat = self._chat
        if self.tool_tokens is not None and self._chat is not None and "tools" not in self._chat.variables:
            source = (_TEMPLATES / f"{self.tool_format.value}.jinja").read_text(encoding="utf-8")
            self._tool_chat = ChatTemplate(source, {**special, "after_assistant": _after_assistant(self._chat)})

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer | None":
        """The tokenizer in a checkpoint's directory; None if it has none, and so accepts token ids only.

        Raises CheckpointError if it is damaged, or has more tokens than the model.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        decoder = _read_json(path).get("decoder") or {}
        if decoder.get("type") != "ByteLevel":
            raise CheckpointError(f"{path} must have a ByteLevel decoder, as DeepSeek's has, got {decoder.get('type')}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise CheckpointError(f"{path} is damaged: {error}") from error
        _check_vocabulary(folder, backend)
        settings = _read_json(folder / "tokenizer_config.json")
        return cls(backend, settings, _template_source(folder, settings))

    def _find_missing_bos(self, bos: str | None, wanted: bool) -> list[int]:
        """The begin-of-sentence token, if the backend does not add it itself: DeepSeek's tokenizer.json does not."""
        bos_id = self._backend.token_to_id(bos) if wanted and bos else None
        if bos_id is None or bos_id in self._backend.encode("").ids:
            return []
        return [bos_id]

    def _find_tool_tokens(self) -> ToolTokens | None:
        """The tokens of tool calls; None if it lacks any."""
        found = [token_id for token in CALL_TOKENS if (token_id := self._backend.token_to_id(token)) is not None]
        return ToolTokens(*found) if len(found) == len(CALL_TOKENS) else None

    def encode(self, text: str) -> list[int]:
        """A prompt's token ids, with begin-of-sentence if the model has one. Raises ValueError for invalid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt must be text that UTF-8 can hold: {error}") from error
        return self._missing_bos + self._ids(text, special=True)

    def encode_part(self, text: str) -> list[int]:
        """The token ids of text inside a prompt, without begin-of-sentence."""
        return self._ids(text, special=False)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """A conversation's token ids, up to the start of the assistant's answer. `arguments`: template variables.

        Raises ValueError that names `messages`.
        """
        called = any(
            isinstance(one, Mapping) and (one.get("tool_calls") or one.get("role") == "tool") for one in messages
        )
        chat = self._tool_chat if tools or called else self._chat
        if chat is None:
            raise ValueError("messages need a chat template, and this checkpoint has none: send prompt or token_ids")
        return self._ids(chat.render(messages, tools, arguments), special=False)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        """Calls the batch method, since only that one releases the GIL."""
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=special)
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The whole text; bytes that are not valid UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """The text of one token; also of special ones."""
        known = self._texts.get(token_id)
        if known is None:
            known = self._texts[token_id] = self.decode([token_id], skip_special_tokens=False)
        return known

    @property
    def reasoning_ids(self) -> tuple[int | None, int | None]:
        """The ids of `<think>` and `</think>`, or None."""
        return self._backend.token_to_id("<think>"), self._backend.token_to_id("</think>")

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes; empty for an unknown id."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._backend.id_to_token(token_id) or ""
            in_alphabet = all(character in _BYTE_OF for character in token)
            known = bytes(_BYTE_OF[character] for character in token) if in_alphabet else token.encode()
            self._bytes[token_id] = known
        return known
