"""Prompts for harvesting, and which of them are held out. Torch-free.

A file is JSON lines ({"prompt": text}, {"messages": [...]} or {"token_ids": [...]}, each with an optional "kind"),
JSON (a list of texts, or lists of texts by kind), or plain text with one prompt per line.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.errors import OutriderError

ANY_KIND = "text"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's token ids, and its kind of text."""

    kind: str
    token_ids: tuple[int, ...]

    def is_held_out(self, share: float) -> bool:
        return is_held_out(self.token_ids, share)


def load_prompts(file: Path, tokenizer: Tokenizer | None, longest: int) -> list[Prompt]:
    """The distinct prompts of `file`, each cut to its first `longest` tokens. OutriderError names a bad one."""
    try:
        entries = list(_entries(file))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OutriderError(f"cannot read the prompts in {file}: {error}") from error
    found: dict[tuple[int, ...], Prompt] = {}
    for number, entry in enumerate(entries, 1):
        token_ids = tuple(_encoded(entry, tokenizer, f"{file}, prompt {number}"))[:longest]
        if token_ids:
            found.setdefault(token_ids, Prompt(str(entry.get("kind", ANY_KIND)), token_ids))
    if not found:
        raise OutriderError(f"{file} holds no prompt")
    return list(found.values())


def is_held_out(prompt: Sequence[int], share: float) -> bool:
    """Whether the prompt is in the held-out `share`. Depends on its tokens, so it is the same in every run."""
    digest = hashlib.blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def noise_seed(prompt: Sequence[int], temperature: float, seed: int) -> int:
    """The seed of the continuation of `prompt`: a hash, so that each continuation has its own."""
    words = f"{seed}:{temperature!r}:".encode() + np.asarray(prompt, dtype=np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        yield from (json.loads(line) for line in text.splitlines() if line.strip())
    elif file.suffix == ".json":
        content = json.loads(text)
        by_kind: dict[str, Iterable[Any]] = content if isinstance(content, dict) else {ANY_KIND: content}
        yield from ({"kind": kind, "prompt": prompt} for kind, prompts in by_kind.items() for prompt in prompts)
    else:
        yield from ({"prompt": line} for line in text.splitlines() if line.strip())


def _encoded(entry: Any, tokenizer: Tokenizer | None, where: str) -> Sequence[int]:
    match entry:
        case {"token_ids": list() as token_ids} if all(type(token) is int for token in token_ids):
            return token_ids
        case {"prompt": str() as prompt} if tokenizer is not None:
            return tokenizer.encode(prompt)
        case {"messages": list() as messages} if tokenizer is not None:
            return tokenizer.encode_chat(messages)
    wanted = "token_ids" if tokenizer is None else "prompt, messages or token_ids"
    raise OutriderError(f"{where}: expected an object with {wanted}, got {json.dumps(entry)[:80]}")
