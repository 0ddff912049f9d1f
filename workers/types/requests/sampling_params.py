"""One request's sampling parameters. Names, meanings and defaults are vLLM's; torch-free.

The constructor checks values; `check_for_model` checks what depends on the model (vocabulary, tokenizer).
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from outrider.workers.types.requests import token_ids
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

MAX_DRAFT_TOKENS = 16
# Drafters: the model's own MTP module, prompt lookup, or a separate model; "auto" is the one worth most.
AUTO, MTP, LOOKUP, DRAFT_MODEL = "auto", "mtp", "lookup", "draft_model"
DRAFTERS = (AUTO, MTP, LOOKUP, DRAFT_MODEL)
MAX_LOGPROBS = 20
_INT64 = 2**63
_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")


def _require(name: str, value: float, low: float, high: float = math.inf, *, low_open: bool = False) -> None:
    inside = (low < value if low_open else low <= value) and value <= high
    if not inside:  # also true of NaN
        wanted = f"in {'(' if low_open else '['}{low:g}, {high:g}]"
        if high >= 2**31 - 1:  # a bound that only mistakes reach
            wanted = f"at most {high}" if value > high else f"at least {low:g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_speculation(value: str | int | None, name: str = "speculation") -> None:
    """Raises ValueError unless the value is "auto", "off", 1..16 or None."""
    if value in ("auto", "off", None):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DRAFT_TOKENS:
        raise ValueError(f'{name} must be "auto", "off" or 1..{MAX_DRAFT_TOKENS} drafts a round, got {value!r}')


def check_drafter(value: str | None) -> None:
    """Raises ValueError unless the value is a drafter's name or None."""
    if value is not None and value not in DRAFTERS:
        raise ValueError(f"drafter must be one of {', '.join(DRAFTERS)}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One request's sampling parameters. `max_tokens=None` means up to the model's length.

    With `reasoning`, the text before `</think>` is returned separately, and structured outputs apply after it only.
    LLM and gateway fill in what needs a tokenizer: `bad_words_token_ids` are `bad_words` as tokens, `reasoning_end_id`
    is `</think>`, `reasoning_begin_id` is `<think>` if an output may begin with it, and `tool_format` is the format of
    tool calls (text/tool_calls.py).
    """

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
    structured_outputs: StructuredOutputsParams | None = None  # or a mapping of its fields
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    speculation: str | int | None = None
    drafter: str | None = None  # None: the engine's setting
    bad_words_token_ids: Sequence[Sequence[int]] | None = None
    reasoning: bool = False
    reasoning_end_id: int | None = None
    reasoning_begin_id: int | None = None
    tool_format: str | None = None

    def __post_init__(self) -> None:
        if self.structured_outputs is not None:
            object.__setattr__(self, "structured_outputs", StructuredOutputsParams.of(self.structured_outputs))
        self._check_types()
        self._check_counts()
        self._check_distribution()
        self._check_penalties()
        self._check_stops()
        self._check_tokens()
        check_speculation(self.speculation)
        check_drafter(self.drafter)
        if self.speculation == "off" and self.drafter is not None:
            raise ValueError(f"drafter goes with speculation, which is off: leave it out, got {self.drafter!r}")

    def _check_types(self) -> None:
        for name in ("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            may_be_absent = name in ("max_tokens", "seed", "logprobs", "prompt_logprobs")
            if type(value) is not int and not (value is None and may_be_absent):
                raise ValueError(f"{name} must be an integer, got {value!r}")
        if not isinstance(self.reasoning, bool):
            raise ValueError(f"reasoning must be true or false, got {self.reasoning!r}")
        for name in ("temperature", "top_p", "min_p", *_PENALTIES):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")

    def _check_counts(self) -> None:
        _require("n", self.n, 1, 128)
        _require("min_tokens", self.min_tokens, 0, _INT64 - 1)
        if self.max_tokens is not None:
            _require("max_tokens", self.max_tokens, 1, _INT64 - 1)
            _require("min_tokens", self.min_tokens, 0, self.max_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None:
                _require(name, count, 0, MAX_LOGPROBS)

    def _check_distribution(self) -> None:
        _require("temperature", self.temperature, 0, 100)
        _require("top_p", self.top_p, 0, 1, low_open=True)
        _require("top_k", self.top_k, 0, 2**31 - 1)
        _require("min_p", self.min_p, 0, 1)
        if self.seed is not None and not -_INT64 <= self.seed < _INT64:
            raise ValueError(f"seed must be a 64-bit integer, got {self.seed}")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"n must be 1 at temperature 0 (every output would be the same), got {self.n}")

    def _check_penalties(self) -> None:
        _require("presence_penalty", self.presence_penalty, -2, 2)
        _require("frequency_penalty", self.frequency_penalty, -2, 2)
        _require("repetition_penalty", self.repetition_penalty, 0, 100, low_open=True)

    def _check_tokens(self) -> None:
        if self.logit_bias is not None:
            token_ids.check_logit_bias(self.logit_bias)
        if self.allowed_token_ids is not None:
            token_ids.check_allowed(self.allowed_token_ids)
        if self.bad_words is not None:
            token_ids.check_bad_words(self.bad_words)
        if self.bad_words_token_ids is not None:
            token_ids.check_bad_words_token_ids(self.bad_words_token_ids)

    def _check_stops(self) -> None:
        if not all(isinstance(text, str) and text for text in self.stop_strings):
            raise ValueError(f"stop must be strings, none of them empty, got {self.stop!r}")
        if self.stop_token_ids is not None:
            token_ids.check_ids("stop_token_ids", self.stop_token_ids)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return tuple(self.stop) if isinstance(self.stop, Sequence) and not isinstance(self.stop, str) else (self.stop,)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or math.isclose(self.temperature, 0, abs_tol=1e-12)

    def check_for_model(self, vocab_size: int, has_tokenizer: bool = True) -> None:
        """Raises ValueError, naming the parameter, if the model does not support it."""
        token_ids.check_in_vocabulary("stop_token_ids", self.stop_token_ids or (), vocab_size)
        token_ids.check_in_vocabulary("logit_bias", self.logit_bias or (), vocab_size)
        token_ids.check_in_vocabulary("allowed_token_ids", self.allowed_token_ids or (), vocab_size)
        for word in self.bad_words_token_ids or ():
            token_ids.check_in_vocabulary("bad_words_token_ids", word, vocab_size)
        for name in ("structured_outputs", "reasoning"):
            if getattr(self, name) and not has_tokenizer:
                raise ValueError(f"{name} needs a tokenizer, and this checkpoint has none")
        if self.bad_words and not has_tokenizer:
            raise ValueError("bad_words needs a tokenizer, and this checkpoint has none: use bad_words_token_ids")
        if self.stop_strings and not has_tokenizer:
            raise ValueError("stop needs a tokenizer, and this checkpoint has none: use stop_token_ids")

    def to_json(self) -> str:
        """JSON of the fields that differ from their defaults."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        if self.structured_outputs is not None:
            values["structured_outputs"] = self.structured_outputs.to_dict()
        return json.dumps(values, default=list)

    @classmethod
    def from_json(cls, text: str) -> "SamplingParams":
        values = json.loads(text)
        if biases := values.get("logit_bias"):  # JSON's keys are strings
            values["logit_bias"] = {int(token_id): bias for token_id, bias in biases.items()}
        return cls(**values)
