"""A "model" whose next token is a function of the tokens before it, and the text that follows from it alone."""

from outrider.workers.types.requests.request import FinishReason, Request
from outrider.workers.types.requests.sampling_params import SamplingParams

VOCABULARY = 5
END_TOKEN = 0


def request(
    request_id: str,
    prompt: list[int],
    *,
    max_tokens: int | None = 4,
    n: int = 1,
    speculation: str | int | None = None,
    seed: int = 0,
    ignore_eos: bool = False,
) -> Request:
    params = SamplingParams(n=n, max_tokens=max_tokens, speculation=speculation, ignore_eos=ignore_eos)
    return Request(request_id=request_id, prompt_token_ids=tuple(prompt), params=params, seed=seed)


def chain(tokens: list[int]) -> list[int]:
    """For every position a number that stands for all tokens up to it."""
    marks, mark = [], 1
    for token in tokens:
        mark = hash((mark, token))
        marks.append(mark)
    return marks


def next_token(tokens: list[int], seed: int, output_index: int) -> int:
    return hash((*chain(tokens)[-1:], seed, output_index)) % VOCABULARY


def straight_line_text(request: Request, output_index: int, max_model_len: int) -> tuple[list[int], FinishReason]:
    """What the request's output must be, whatever the scheduler does."""
    tokens = list(request.prompt_token_ids)
    limit = length_limit(len(tokens), request.params, max_model_len)
    while len(tokens) < limit:
        tokens.append(next_token(tokens, request.seed, output_index))
        if tokens[-1] == END_TOKEN and not request.params.ignore_eos:
            return tokens[len(request.prompt_token_ids) :], FinishReason.STOP
    return tokens[len(request.prompt_token_ids) :], FinishReason.LENGTH


def length_limit(prompt_tokens: int, params: SamplingParams, max_model_len: int) -> int:
    return min(max_model_len, max_model_len if params.max_tokens is None else prompt_tokens + params.max_tokens)
