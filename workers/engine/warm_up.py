"""Requests that an engine runs before it is ready, to warm up allocators, thread pools and caches.

With automatic depth, it also measures rounds with and without drafts, so that depths are right from the first request.
"""

from collections.abc import Iterator
from typing import NamedTuple

from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import AUTO, SamplingParams

SEED = -(1 << 63)  # identifies warm-up requests
_PROMPT_TOKENS, _OUTPUT_TOKENS = 96, 8
_DRAFTS = 2  # per round, if the engine drafts
_SIZES = (1, 4, 16)  # batch sizes
# (drafts per sequence, rounds). With AUTO the policy measures rounds without drafts; it runs that many in a row
_MEASURED: tuple[tuple[int | str, int], ...] = ((1, 4), (3, 4), (AUTO, 14))


class WarmUp(NamedTuple):
    """A request, and the rounds per lane after its prefill until it is cancelled."""

    request: Request
    rounds: int


def first_use(vocab_size: int, longest: int) -> WarmUp:
    """A request that runs prefill, decode, drafting and sampling, with at most `longest` tokens (2 or more)."""
    return _warm_up(vocab_size, longest, _OUTPUT_TOKENS, 1, _DRAFTS)


def measuring(vocab_size: int, longest: int, most: int, drafter: str) -> Iterator[WarmUp]:
    """Requests that measure rounds of up to `most` sequences, with drafts of `drafter` and without."""
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
