"""How `outrider generate` draws: each option, and what it makes of a request's parameters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.cluster.errors import InvalidRequestError

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
    """Each field is an option. Ranges are the parameters' own, checked where a request is made of them."""

    n: Annotated[int, typer.Option("-n", "--n", help="So many texts, with --json.")] = 1
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that have this share.")] = 1.0
    top_k: Annotated[int, typer.Option(help="Draw from so many of the likeliest; 0: from all.")] = 0
    min_p: Annotated[float, typer.Option(help="Draw from tokens at least this likely beside the likeliest.")] = 0.0
    presence_penalty: Annotated[float, typer.Option(help="Taken once from what the text has said.")] = 0.0
    frequency_penalty: Annotated[float, typer.Option(help="Taken each time from what the text has said.")] = 0.0
    repetition_penalty: Annotated[float, typer.Option(help="Divides what prompt and text have said.")] = 1.0
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=BIAS", help="Added to a token's logit; may be repeated.")
    ] = None
    bad_word: Annotated[list[str] | None, typer.Option(help="Is never said; may be repeated.")] = None
    allowed_token_id: Annotated[list[int] | None, typer.Option(help="Nothing but these is said; may be repeated.")] = (
        None
    )
    max_tokens: Annotated[int, typer.Option(help="The text's length at most.")] = 128
    min_tokens: Annotated[int, typer.Option(help="And at least.")] = 0
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be repeated.")] = None
    stop_token_id: Annotated[list[int] | None, typer.Option(help="A token that ends it; may be repeated.")] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after end-of-sequence.")] = False
    json_schema: Annotated[Path | None, typer.Option(help="A file: the text is JSON of this schema.")] = None
    regex: Annotated[str | None, typer.Option(help="The text matches it.")] = None
    grammar: Annotated[Path | None, typer.Option(help="A file: the text is of this Lark or GBNF grammar.")] = None
    choice: Annotated[list[str] | None, typer.Option(help="The text is one of these; may be repeated.")] = None
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Give what comes before </think> apart, on stderr.")
    ] = False
    logprobs: Annotated[int | None, typer.Option(help="Say how likely so many tokens were, with --json.")] = None
    prompt_logprobs: Annotated[int | None, typer.Option(help="As --logprobs, of the prompt's tokens.")] = None
    speculation: Annotated[str | None, typer.Option(help="auto, off, or drafts a round (1..16).")] = None
    drafter: Annotated[str | None, typer.Option(help="Who drafts: auto, mtp, lookup or draft_model.")] = None

    def parameters(self) -> dict[str, Any]:
        """As SamplingParams' fields. InvalidRequestError names an option that cannot be read."""
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
