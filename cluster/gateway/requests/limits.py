"""Limits of a single request, checked before any other work. The model's own limits are checked later."""

from dataclasses import dataclass
from typing import Annotated

from outrider.proto import inference_pb2 as pb
from outrider.workers.types.requests.token_ids import MAX_BAD_WORDS
from outrider.workers.types.settings import Setting, check_settings

_REQUEST_ID_CHARACTERS = 256
_STOP_CHARACTERS = 1024  # length of one stop string, which is searched for after every token
_BAD_WORD_CHARACTERS = 256


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Maximum counts and sizes per request."""

    max_message_bytes: Annotated[int, Setting("Maximum size of a request in bytes.", least=1024)] = 4 * 2**20
    max_prompt_tokens: Annotated[
        int | None, Setting("Maximum length of a prompt. By default the model's length.", least=1)
    ] = None
    max_stop_strings: Annotated[int, Setting("Maximum number of stop strings per request.", least=0)] = 16
    max_stop_token_ids: Annotated[int, Setting("Maximum number of stop token ids per request.", least=0)] = 256
    max_logit_bias: Annotated[int, Setting("Maximum number of logit_bias entries per request.", least=0)] = 1024
    max_allowed_token_ids: Annotated[int, Setting("Maximum number of allowed_token_ids per request.", least=0)] = 16_384
    max_schema_bytes: Annotated[int, Setting("Maximum size of a structured output's schema in bytes.", least=0)] = (
        64 * 2**10
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self, request: pb.GenerateRequest) -> None:
        """Raises ValueError, which names the field, if a field exceeds its limit."""
        for field, given, most in self._counts(request):
            if given > most:
                raise ValueError(f"{field} has {given} entries, and this gateway accepts at most {most}")
        for field, given, most in _lengths(request, self.max_schema_bytes):
            if given > most:
                raise ValueError(f"{field} has length {given}, and this gateway accepts at most {most}")

    def _counts(self, request: pb.GenerateRequest) -> tuple[tuple[str, int, int], ...]:
        stopping = request.stopping
        return (
            ("stop", len(stopping.stop), self.max_stop_strings),
            ("stop_token_ids", len(stopping.stop_token_ids), self.max_stop_token_ids),
            ("logit_bias", len(request.sampling.logit_bias), self.max_logit_bias),
            ("allowed_token_ids", len(request.sampling.allowed_token_ids), self.max_allowed_token_ids),
            ("bad_words", len(request.sampling.bad_words), MAX_BAD_WORDS),
            ("bad_words_token_ids", len(request.sampling.bad_words_token_ids), 2 * MAX_BAD_WORDS),
        )

    def check_prompt(self, tokens: int, name: str) -> None:
        """Raises ValueError if the prompt is longer than the limit."""
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise ValueError(f"{name} has {tokens} tokens, and this gateway accepts at most {self.max_prompt_tokens}")


def _lengths(request: pb.GenerateRequest, max_schema_bytes: int) -> tuple[tuple[str, int, int], ...]:
    longest_stop = max(map(len, request.stopping.stop), default=0)
    longest_bad_word = max(map(len, request.sampling.bad_words), default=0)
    return (
        ("request_id", len(request.request_id), _REQUEST_ID_CHARACTERS),
        ("stop", longest_stop, _STOP_CHARACTERS),
        ("bad_words", longest_bad_word, _BAD_WORD_CHARACTERS),
        ("structured_output", request.structured_output.ByteSize(), max_schema_bytes),
        ("tools", sum(len(tool.parameters) for tool in request.messages.tools), max_schema_bytes),
    )
