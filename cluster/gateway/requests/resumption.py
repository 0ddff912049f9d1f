"""A client's `resume`: whether it continues the request, and behind what the engine goes on. Pure."""

from outrider.cluster.api.generation import GenerateCall, Resume
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.types.request import OutputSoFar


def check_resume(resume: Resume, call: GenerateCall, prompt_tokens: int, info: EngineInfo) -> None:
    """ValueError names what of `resume` cannot be a continuation of this call on this engine."""
    if not resume.outputs:
        raise ValueError("resume.outputs must name an unfinished output: one that has no token yet counts too")
    indices = [output.index for output in resume.outputs]
    if len(set(indices)) != len(indices) or max(indices) >= call.params.n:
        raise ValueError(f"resume.outputs must have distinct indices below {call.params.n}, got {indices}")
    if call.params.seed not in (None, resume.seed):
        raise ValueError(f"seed must be resume.seed ({resume.seed}) or absent, got {call.params.seed}")
    limit = info.max_model_len
    if call.params.max_tokens is not None:
        limit = min(limit, prompt_tokens + call.params.max_tokens)
    for output in resume.outputs:
        if prompt_tokens + len(output.token_ids) > limit:
            has, most = len(output.token_ids), limit - prompt_tokens
            raise ValueError(f"resume: output {output.index} has {has} tokens, and may have {most}")
        for place, token_id in enumerate(output.token_ids):
            if token_id >= info.vocab_size:
                raise ValueError(
                    f"resume: token {place} of output {output.index} must be below {info.vocab_size}, got {token_id}"
                )


def to_say_again(resume: Resume) -> tuple[OutputSoFar, ...]:
    """Each output without its last token: the engine says that again, and with it an end that the client missed."""
    return tuple(OutputSoFar(index=output.index, token_ids=output.token_ids[:-1]) for output in resume.outputs)
