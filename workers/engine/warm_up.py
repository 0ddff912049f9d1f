"""What an engine runs before it calls itself ready: allocators, thread pools and caches meet their first use.

Where depth follows the price of time, the rounds that price is made of are run too: the first clients' depths are no
guess then, and nothing is lost to finding out.
"""

from collections.abc import Iterator
from typing import NamedTuple

from outrider.workers.types.request import Request
from outrider.workers.types.sampling_params import AUTO, SamplingParams

SEED = -(1 << 63)  # of its texts, by which they are told from clients'
_PROMPT_TOKENS, _OUTPUT_TOKENS = 96, 8
_DRAFTS = 2  # a round, where the engine drafts at all
_SIZES = (1, 4, 16)  # sequences together
# Drafts of each, and rounds: with AUTO the policy measures rounds without drafts, of which it runs so many in a row
_MEASURED: tuple[tuple[int | str, int], ...] = ((1, 4), (3, 4), (AUTO, 14))


class WarmUp(NamedTuple):
    """A request, and after how many rounds of a lane, once all have read its prompt, it is called off."""

    request: Request
    rounds: int


def first_use(vocab_size: int, longest: int) -> WarmUp:
    """Visits prefill, decode, drafting and drawing, with at most `longest` tokens (2 or more)."""
    return _warm_up(vocab_size, longest, _OUTPUT_TOKENS, 1, _DRAFTS)


def measuring(vocab_size: int, longest: int, most: int, drafter: str) -> Iterator[WarmUp]:
    """Rounds of up to `most` sequences, with the `drafter`'s drafts and without."""
    for size in _SIZES:
        if size <= most:
            for depth, rounds in _MEASURED:
                yield _warm_up(vocab_size, longest, rounds, size, depth, drafter)


def _warm_up(
    vocab_size: int, longest: int, rounds: int, size: int, depth: int | str, drafter: str | None = None
) -> WarmUp:
    prompt = tuple(7919 * (i + 1) % vocab_size for i in range(min(_PROMPT_TOKENS, longest - 1)))
    tokens = min(rounds * (depth + 1 if isinstance(depth, int) else 2), longest - len(prompt))
    params = SamplingParams(
        n=size, temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=SEED, speculation=depth, drafter=drafter
    )
    return WarmUp(Request(request_id="warm-up", prompt_token_ids=prompt, params=params, seed=SEED), rounds)
