"""The interface of a running engine, as LLM and the leader's gRPC service use it. Torch-free."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.workers.config import COUPLED
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.model.served_model import ServedModel
from outrider.workers.types.requests.request import Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import AUTO, DRAFT_MODEL, LOOKUP, MTP, SamplingParams

_MOST_PROMPT_LOGPROBS = 1_000_000
Deliver = Callable[[list[SequenceChunk]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo(ServedModel):
    """What the engine supports and its limits, against which requests are checked."""

    drafters: tuple[str, ...] = (MTP, LOOKUP)  # loaded ones
    verification: str = COUPLED
    max_num_seqs: int = 64  # running at a time

    def check(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        has_tokenizer: bool,
        prompt_name: str = "prompt",
    ) -> None:
        """Raises ValueError, naming the parameter (or `prompt_name`), if this engine cannot serve the request."""
        self._check_length(len(prompt_token_ids), prompt_name)
        for place, token_id in enumerate(prompt_token_ids):
            if type(token_id) is not int or not 0 <= token_id < self.vocab_size:
                last = self.vocab_size - 1
                raise ValueError(f"{prompt_name}[{place}] must be an integer in [0, {last}], got {token_id!r}")
        params.check_for_model(self.vocab_size, has_tokenizer)
        self._check_prompt_logprobs(len(prompt_token_ids), params.prompt_logprobs)
        self._check_speculation(params.speculation, params.drafter)

    def _check_length(self, length: int, prompt_name: str) -> None:
        if length == 0:
            raise ValueError(f"{prompt_name} must not be empty")
        if length >= self.max_model_len:
            raise ValueError(
                f"{prompt_name} has {length} tokens, and must be shorter than the model's length, {self.max_model_len}"
            )

    @staticmethod
    def _check_prompt_logprobs(length: int, wanted: int | None) -> None:
        """Bounds them, since they are sent to the gateway in one message."""
        if wanted is not None and length * (wanted + 1) > _MOST_PROMPT_LOGPROBS:
            raise ValueError(
                f"prompt_logprobs={wanted} of a prompt of {length} tokens are {length * (wanted + 1)} values, and may "
                f"be at most {_MOST_PROMPT_LOGPROBS}"
            )

    def _check_speculation(self, requested: str | int | None, drafter: str | None) -> None:
        """Without MTP weights, "auto" means no drafts. A number needs a model that drafts, or a named drafter."""
        if drafter is not None:
            self._check_drafter(drafter)
        if self.verification != COUPLED and requested == "auto":
            raise ValueError(
                f'speculation must be "off" or a number with verification="{self.verification}", got "auto"'
            )
        if requested in (None, "off") or (requested == "auto" and not self.has_mtp):
            return
        if drafter in (None, AUTO) and not self.has_mtp and DRAFT_MODEL not in self.drafters:
            raise ValueError(f"speculation must not be {requested!r}: this checkpoint has no MTP weights to draft with")
        if self.speculation == "off":
            raise ValueError(
                f'speculation must be "off" or absent, got {requested!r}: this engine runs with speculation off'
            )

    def _check_drafter(self, drafter: str) -> None:
        if self.speculation == "off":
            raise ValueError(f"drafter must be absent, got {drafter!r}: this engine runs with speculation off")
        if drafter not in (AUTO, *self.drafters):
            loaded = ", ".join((AUTO, *self.drafters))
            raise ValueError(f"drafter must be one that this engine loaded ({loaded}), got {drafter!r}")


class EngineHandle(Protocol):
    """An engine that runs in its own thread. All methods are thread-safe; only swap_drafter blocks."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def counters(self) -> EngineCounters: ...

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queues a request; its id must not be in use. Raises EngineStoppedError if the engine has ended.

        `deliver` is called in the engine's thread, once per round, with the chunks of all requests that share it. It
        must not block or raise. A request's last chunks have a finish reason for each output, or one has an error.
        """
        ...

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Cancels one output, or all of the request's, at the latest when its round ends. Ignores finished requests."""
        ...

    def swap_drafter(self, checkpoint: str) -> None:
        """Replaces the MTP module (and drafting head) by another checkpoint's between two rounds; blocks until then.

        `checkpoint` is a model's name or a directory on the leader's machine. Output tokens do not change. Raises
        OutriderError and changes nothing if the module does not fit the running model.
        """
        ...
