"""Sampling options of `outrider generate`, and their conversion to request parameters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.cluster.api.errors import InvalidRequestError

_AS_THEY_ARE = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("n", "max_tokens", "min_tokens", "seed", "ignore_eos", "reasoning", "logprobs", "prompt_logprobs", "drafter"),
)
_LISTS = {
    "stop": "stop",
    "stop_token_id": "stop_token_ids",
    "bad_word": "bad_words",
    "allowed_token_id": "allowed_token_ids",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Each field is an option. Ranges are checked by SamplingParams when a request is built."""

    n: Annotated[int, typer.Option("-n", "--n", help="Number of completions (requires --json).")] = 1
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0: greedy.")] = 1.0
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens with this cumulative probability.")
    ] = 1.0
    top_k: Annotated[int, typer.Option(help="Sample from this many of the most likely tokens; 0: all.")] = 0
    min_p: Annotated[float, typer.Option(help="Minimum probability, relative to the most likely token.")] = 0.0
    presence_penalty: Annotated[float, typer.Option(help="Subtracted from the logits of tokens in the output.")] = 0.0
    frequency_penalty: Annotated[float, typer.Option(help="Subtracted once per occurrence in the output.")] = 0.0
    repetition_penalty: Annotated[
        float, typer.Option(help="Penalizes tokens of the prompt and the output; 1: off.")
    ] = 1.0
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=BIAS", help="Add BIAS to the logit of token ID (repeatable).")
    ] = None
    bad_word: Annotated[list[str] | None, typer.Option(help="String that is never generated (repeatable).")] = None
    allowed_token_id: Annotated[list[int] | None, typer.Option(help="Generate only these tokens (repeatable).")] = None
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens to generate.")] = 128
    min_tokens: Annotated[int, typer.Option(help="Minimum number of tokens to generate.")] = 0
    seed: Annotated[int | None, typer.Option(help="Random seed; the same seed gives the same text.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the output (repeatable).")] = None
    stop_token_id: Annotated[list[int] | None, typer.Option(help="Token that ends the output (repeatable).")] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Continue after end-of-sequence.")] = False
    json_schema: Annotated[Path | None, typer.Option(help="File with a JSON schema for the output.")] = None
    regex: Annotated[str | None, typer.Option(help="Regular expression for the output.")] = None
    grammar: Annotated[Path | None, typer.Option(help="File with a Lark or GBNF grammar for the output.")] = None
    choice: Annotated[list[str] | None, typer.Option(help="Possible output (repeatable).")] = None
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Print the reasoning (before </think>) on stderr.")] = (
        False
    )
    logprobs: Annotated[int | None, typer.Option(help="Number of log-probabilities per token (requires --json).")] = (
        None
    )
    prompt_logprobs: Annotated[int | None, typer.Option(help="The same for prompt tokens (requires --json).")] = None
    speculation: Annotated[str | None, typer.Option(help="auto, off, or a fixed draft depth 1..16.")] = None
    drafter: Annotated[str | None, typer.Option(help="Drafter: auto, mtp, lookup or draft_model.")] = None

    def parameters(self) -> dict[str, Any]:
        """As fields of SamplingParams. Raises InvalidRequestError, which names an invalid option."""
        lists = {name: getattr(self, option) or None for option, name in _LISTS.items()}
        spoken = self.speculation
        return {
            **{name: getattr(self, name) for name in _AS_THEY_ARE},
            **lists,
            "logit_bias": dict(_bias(text) for text in self.logit_bias) if self.logit_bias else None,
            "structured_outputs": self._structure() or None,
            "speculation": int(spoken) if spoken and spoken.isdecimal() else spoken,
        }

    def _structure(self) -> dict[str, Any]:
        texts = {"json": _text_of("--json-schema", self.json_schema), "grammar": _text_of("--grammar", self.grammar)}
        given = {**texts, "regex": self.regex, "choice": self.choice or None}
        return {name: value for name, value in given.items() if value is not None}


def _bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError as error:
        raise InvalidRequestError(f"--logit-bias takes ID=BIAS, got {text!r}") from error


def _text_of(option: str, path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{option} {path}: {getattr(error, 'strerror', None) or error}") from error
