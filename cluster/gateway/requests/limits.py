"""What one request may ask of a gateway, checked before anything is built from it. The model's limits come later."""

from dataclasses import dataclass

from outrider.proto import inference_pb2 as pb
from outrider.workers.types.token_ids import MAX_BAD_WORDS

_REQUEST_ID_CHARACTERS = 256
_STOP_CHARACTERS = 1024  # of one stop string: it is looked for after every token
_BAD_WORD_CHARACTERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Counts and bytes, per request."""

    max_message_bytes: int = 4 * 2**20  # refused by gRPC itself, unread
    max_prompt_tokens: int | None = None  # None: the model's length alone
    max_stop_strings: int = 16
    max_stop_token_ids: int = 256
    max_logit_bias: int = 1024
    max_allowed_token_ids: int = 16_384
    max_schema_bytes: int = 64 * 2**10

    def __post_init__(self) -> None:
        counts = (
            "max_stop_strings",
            "max_stop_token_ids",
            "max_logit_bias",
            "max_allowed_token_ids",
            "max_schema_bytes",
        )
        for name in counts:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.max_message_bytes < 1024:
            raise ValueError(f"max_message_bytes must be at least 1024, got {self.max_message_bytes}")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens must be at least 1, got {self.max_prompt_tokens}")

    def check(self, request: pb.GenerateRequest) -> None:
        """ValueError names the field that asks for too much."""
        for field, given, most in self._counts(request):
            if given > most:
                raise ValueError(f"{field} has {given} entries, and this gateway takes at most {most}")
        for field, given, most in _lengths(request, self.max_schema_bytes):
            if given > most:
                raise ValueError(f"{field} is {given} long, and this gateway takes at most {most}")

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
        """ValueError if the prompt is longer than this gateway takes."""
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise ValueError(f"{name} has {tokens} tokens, and this gateway takes at most {self.max_prompt_tokens}")


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
