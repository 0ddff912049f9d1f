"""What the draw of one token depends on, apart from its row of logits."""

from dataclasses import dataclass, field
from functools import lru_cache

from outrider.kernels.sampling import row_key, sequence_key
from outrider.workers.sampling.token_rules import Mask, TokenRules
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.round import IntArray, ints

_NO_RULES = TokenRules()
_sequence_key = lru_cache(maxsize=4096)(sequence_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """The row's place in its sequence, and the parameters and rules that apply there."""

    params: SamplingParams
    seed: int
    output_index: int
    position: int  # of the token to draw, counted over prompt and output
    output_tokens: int  # number of output tokens before it
    eos_token_ids: tuple[int, ...]
    rules: TokenRules = _NO_RULES
    allowed: Mask | None = None  # allowed by the rules and by the grammar
    output: IntArray = field(default_factory=ints)  # the output before it, if a rule depends on it

    @property
    def fallback(self) -> int:
        """The token to emit if the rules exclude all."""
        return self.eos_token_ids[0] if self.eos_token_ids else 0

    @property
    def noise_key(self) -> int:
        return row_key(_sequence_key(self.seed, self.output_index), self.position)
