"""What an engine runs before it calls itself ready: allocators, thread pools and caches meet their first use."""

from outrider.workers.engine.request import Request
from outrider.workers.sampling_params import SamplingParams

_PROMPT_TOKENS, _OUTPUT_TOKENS = 6, 8
_DRAFTS = 2  # a round, where the engine drafts at all


def warm_up_request(vocab_size: int, longest: int) -> Request:
    """A request that visits prefill, decode, drafting and drawing, of at most `longest` tokens (2 or more)."""
    prompt = tuple(i % vocab_size for i in range(min(_PROMPT_TOKENS, longest - 1)))
    output_tokens = min(_OUTPUT_TOKENS, longest - len(prompt))
    params = SamplingParams(temperature=0.8, max_tokens=output_tokens, ignore_eos=True, seed=0, speculation=_DRAFTS)
    return Request(request_id="warm-up", prompt_token_ids=prompt, params=params, seed=0)
