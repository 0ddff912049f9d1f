"""What a running engine is to those who send it requests: LLM and the leader's gRPC service. Torch-free."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.workers.config import COUPLED
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.request import Request, SequenceChunk
from outrider.workers.types.sampling_params import AUTO, DRAFT_MODEL, LOOKUP, MTP, SamplingParams
from outrider.workers.types.served_model import ServedModel

_MOST_PROMPT_LOGPROBS = 1_000_000
Deliver = Callable[[list[SequenceChunk]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo(ServedModel):
    """What a request can ask of this engine."""

    drafters: tuple[str, ...] = (MTP, LOOKUP)  # what it loaded
    verification: str = COUPLED
    max_num_seqs: int = 64  # that run at once

    def check(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        has_tokenizer: bool,
        prompt_name: str = "prompt",
    ) -> None:
        """Refuses what this engine cannot do; the ValueError names the parameter (`prompt_name` for the prompt's)."""
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
        """They are one message to the gateway."""
        if wanted is not None and length * (wanted + 1) > _MOST_PROMPT_LOGPROBS:
            raise ValueError(
                f"prompt_logprobs={wanted} of a prompt of {length} tokens are {length * (wanted + 1)} values, and may "
                f"be at most {_MOST_PROMPT_LOGPROBS}"
            )

    def _check_speculation(self, asked: str | int | None, drafter: str | None) -> None:
        """Without a drafter "auto" means none, as it does for the engine itself; a depth is a model's, or named."""
        if drafter is not None:
            self._check_drafter(drafter)
        if self.verification != COUPLED and asked == "auto":
            raise ValueError(
                f'speculation must be "off" or a number with verification="{self.verification}", got "auto"'
            )
        if asked in (None, "off") or (asked == "auto" and not self.has_mtp):
            return
        if drafter in (None, AUTO) and not self.has_mtp and DRAFT_MODEL not in self.drafters:
            raise ValueError(f"speculation must not be {asked!r}: this checkpoint has no MTP weights to draft with")
        if self.speculation == "off":
            raise ValueError(
                f'speculation must be "off" or absent, got {asked!r}: this engine runs with speculation off'
            )

    def _check_drafter(self, drafter: str) -> None:
        if self.speculation == "off":
            raise ValueError(f"drafter must be absent, got {drafter!r}: this engine runs with speculation off")
        if drafter not in (AUTO, *self.drafters):
            loaded = ", ".join((AUTO, *self.drafters))
            raise ValueError(f"drafter must be one that this engine loaded ({loaded}), got {drafter!r}")


class EngineHandle(Protocol):
    """An engine that runs rounds in its own thread. Every method may be called from any thread.

    All but swap_drafter return at once.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def counters(self) -> EngineCounters: ...

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queues a request whose id no live request has. EngineStoppedError if the engine has ended.

        `deliver` is called from the engine's thread, once a round for all requests submitted with an equal
        `deliver`, with their chunks; it returns at once and never raises. A request's chunks end with a finish
        reason for each of its outputs, or with one error chunk.
        """
        ...

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Ends one output, or all of the request's, at the end of the round in flight. Unknown or finished: nothing."""
        ...

    def swap_drafter(self, checkpoint: str) -> None:
        """Drafts with the MTP module (and drafting head) of another checkpoint from the next round on; waits for it.

        `checkpoint` is a model's name or a directory on the leader's machine. No token changes. OutriderError, and
        nothing has happened, if it does not fit the model that runs.
        """
        ...
