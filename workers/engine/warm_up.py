"""What an engine runs before it calls itself ready: allocators, thread pools and caches meet their first use."""

from outrider.workers.engine.request import Request
from outrider.workers.sampling_params import SamplingParams

_PROMPT_TOKENS, _OUTPUT_TOKENS = 6, 8


def warm_up_request(vocab_size: int, max_model_len: int) -> Request:
    """A request that visits prefill, decode, drafting and drawing."""
    prompt = tuple(i % vocab_size for i in range(min(_PROMPT_TOKENS, max_model_len - 1)))
    params = SamplingParams(temperature=0.8, max_tokens=_OUTPUT_TOKENS, ignore_eos=True, seed=0)
    return Request(request_id="warm-up", prompt_token_ids=prompt, params=params, seed=0)
