"""A sequence's token rules (biases, allowed tokens, bad words, penalties) as arrays for both paths.

Pure: callers pass in the output before a row. kernels/cpu/src/rules.h does the same in C++.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.round import FloatArray, IntArray, ints

Mask = NDArray[np.uint32]  # token v is allowed iff bit v % 32 of word v // 32 is set; further tokens are not


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """The rules of one sequence, the same at every place of its output."""

    biased_ids: IntArray = field(default_factory=ints)
    biases: FloatArray = field(default_factory=lambda: np.zeros(0))
    allowed: Mask | None = None  # None: all
    bad_words: IntArray = field(default_factory=ints)  # for each word its length, then its tokens
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    prompt_ids: IntArray = field(default_factory=ints)  # tokens that the repetition penalty counts besides the output

    @classmethod
    def of(cls, params: SamplingParams, prompt_ids: Iterable[int] = ()) -> "TokenRules":
        biases = params.logit_bias or {}
        return cls(
            biased_ids=ints(list(biases)),
            biases=np.array(list(biases.values()), dtype=np.float64),
            allowed=None if params.allowed_token_ids is None else mask_of(params.allowed_token_ids),
            bad_words=_laid_out(params.bad_words_token_ids or ()),
            repetition=params.repetition_penalty,
            frequency=params.frequency_penalty,
            presence=params.presence_penalty,
            prompt_ids=ints(list(prompt_ids)),
        )

    @property
    def penalises(self) -> bool:
        return (self.repetition, self.frequency, self.presence) != (1, 0, 0)

    @property
    def looks_back(self) -> bool:
        """Whether the rules depend on the output so far."""
        return self.penalises or any(len(word) > 1 for word in self.words())

    def words(self) -> list[list[int]]:
        flat, words, at = self.bad_words.tolist(), [], 0
        while at < len(flat):
            words.append(flat[at + 1 : at + 1 + flat[at]])
            at += 1 + flat[at]
        return words

    def banned(self, output: IntArray) -> list[int]:
        """The tokens that would complete a bad word after `output`."""
        words = self.words()
        most = max(map(len, words), default=1) - 1
        tail = output[max(0, len(output) - most) :].tolist()
        return [word[-1] for word in words if tail[max(0, len(tail) - len(word) + 1) :] == word[:-1]]

    def counts(self, output: IntArray) -> tuple[IntArray, IntArray]:
        """The tokens that penalties apply to after `output`, and how often each occurs in it."""
        ids, counts = np.unique(output, return_counts=True)
        prompt_only = np.setdiff1d(self.prompt_ids, ids)
        return np.concatenate([ids, prompt_only]), np.concatenate([counts, np.zeros(len(prompt_only), dtype=np.int64)])

    def penalised(self, logits: FloatArray, counts: IntArray) -> FloatArray:
        """Applies vLLM's penalties to the logits, float64 [n], of tokens that occur `counts` times in the output."""
        repeated = np.where(logits > 0, logits / self.repetition, logits * self.repetition)
        return np.asarray(repeated - self.frequency * counts - np.where(counts > 0, self.presence, 0.0))


def mask_of(ids: Sequence[int]) -> Mask:
    """The shortest mask that allows `ids`."""
    bits = np.zeros(-(-(max(ids) + 1) // 32) * 32, dtype=np.uint8)
    bits[ints(list(ids))] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def both(left: Mask, right: Mask) -> Mask:
    """The tokens that both allow."""
    words = min(len(left), len(right))
    return left[:words] & right[:words]


def allowed_of(mask: Mask, vocab: int) -> NDArray[np.bool_]:
    """Whether each of `vocab` tokens is allowed."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab].astype(np.bool_)
    return np.pad(bits, (0, vocab - len(bits)))


def _laid_out(words: Sequence[Sequence[int]]) -> IntArray:
    return ints([value for word in words for value in (len(word), *word)])
