"""How one request is sampled and stopped. Names, meanings and defaults are vLLM's; torch-free.

Values are checked when constructed. What depends on the model (vocabulary, length) is checked by `check_for_model`.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_DRAFT_TOKENS = 16
# Who drafts: the model's own module, the text itself, or another model; "auto" is whoever pays most.
AUTO, MTP, LOOKUP, DRAFT_MODEL = "auto", "mtp", "lookup", "draft_model"
DRAFTERS = (AUTO, MTP, LOOKUP, DRAFT_MODEL)
_INT64 = 2**63
_NOT_BUILT: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "prompt_logprobs": None,
    "structured_outputs": None,
}


def _require(name: str, value: float, low: float, high: float = math.inf, *, low_open: bool = False) -> None:
    inside = (low < value if low_open else low <= value) and value <= high
    if not inside:  # also true of NaN
        wanted = f"at least {low:g}" if high > 2**31 else f"in {'(' if low_open else '['}{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_speculation(value: str | int | None, name: str = "speculation") -> None:
    """Refuses anything but "auto", "off", 1..16 or None."""
    if value in ("auto", "off", None):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DRAFT_TOKENS:
        raise ValueError(f'{name} must be "auto", "off" or 1..{MAX_DRAFT_TOKENS} drafts a round, got {value!r}')


def check_drafter(value: str | None) -> None:
    """Refuses what is not a drafter's name, or None."""
    if value is not None and value not in DRAFTERS:
        raise ValueError(f"drafter must be one of {', '.join(DRAFTERS)}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One request's sampling parameters. `max_tokens=None` means up to the model's length."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: Any = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    speculation: str | int | None = None
    drafter: str | None = None  # who drafts for this request; None: as the engine is set

    def __post_init__(self) -> None:
        for name, default in _NOT_BUILT.items():
            if getattr(self, name) != default:
                raise ValueError(f"{name} is not supported yet: leave it at {default!r}")
        self._check_types()
        self._check_counts()
        self._check_distribution()
        self._check_stops()
        check_speculation(self.speculation)
        check_drafter(self.drafter)
        if self.speculation == "off" and self.drafter is not None:
            raise ValueError(f"drafter goes with speculation, which is off: leave it out, got {self.drafter!r}")

    def _check_types(self) -> None:
        for name in ("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs"):
            value = getattr(self, name)
            may_be_absent = name in ("max_tokens", "seed", "logprobs")
            if type(value) is not int and not (value is None and may_be_absent):
                raise ValueError(f"{name} must be an integer, got {value!r}")
        for name in ("temperature", "top_p", "min_p"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")

    def _check_counts(self) -> None:
        _require("n", self.n, 1, 128)
        _require("min_tokens", self.min_tokens, 0, _INT64 - 1)
        if self.max_tokens is not None:
            _require("max_tokens", self.max_tokens, 1, _INT64 - 1)
            _require("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.logprobs is not None:
            _require("logprobs", self.logprobs, 0, 20)

    def _check_distribution(self) -> None:
        _require("temperature", self.temperature, 0, 100)
        _require("top_p", self.top_p, 0, 1, low_open=True)
        _require("top_k", self.top_k, 0, 2**31 - 1)
        _require("min_p", self.min_p, 0, 1)
        if self.seed is not None and not -_INT64 <= self.seed < _INT64:
            raise ValueError(f"seed must be a 64-bit integer, got {self.seed}")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"n must be 1 at temperature 0 (every output would be the same), got {self.n}")

    def _check_stops(self) -> None:
        if not all(isinstance(text, str) and text for text in self.stop_strings):
            raise ValueError(f"stop must be strings, none of them empty, got {self.stop!r}")
        ids = () if self.stop_token_ids is None else self.stop_token_ids
        if not isinstance(ids, Sequence) or not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise ValueError(f"stop_token_ids must be integers of at least 0, got {ids!r}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return tuple(self.stop) if isinstance(self.stop, Sequence) and not isinstance(self.stop, str) else (self.stop,)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or math.isclose(self.temperature, 0, abs_tol=1e-12)

    def check_for_model(self, vocab_size: int, has_tokenizer: bool = True) -> None:
        """Refuses what this model cannot do; ValueError names the parameter."""
        for token_id in self.stop_token_ids or ():
            _require("stop_token_ids", token_id, 0, vocab_size - 1)
        if self.stop_strings and not has_tokenizer:
            raise ValueError("stop needs a tokenizer, and this checkpoint has none: use stop_token_ids")

    def to_json(self) -> str:
        """Every field that is not at its default."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return json.dumps(values, default=list)

    @classmethod
    def from_json(cls, text: str) -> "SamplingParams":
        return cls(**json.loads(text))
