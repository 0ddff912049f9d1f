"""Checks a client's `resume`, and determines after which tokens the engine continues. Pure."""

from outrider.cluster.api.generation import GenerateCall, Resume
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.types.requests.request import OutputSoFar


def check_resume(resume: Resume, call: GenerateCall, prompt_tokens: int, info: EngineInfo) -> None:
    """Raises ValueError, which names the field, if `resume` cannot continue this call on this engine."""
    if not resume.outputs:
        raise ValueError("resume.outputs must contain an unfinished output, also if it has no token yet")
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
            raise ValueError(f"resume: output {output.index} has {has} tokens, at most {most} are possible")
        for place, token_id in enumerate(output.token_ids):
            if token_id >= info.vocab_size:
                raise ValueError(
                    f"resume: token {place} of output {output.index} must be below {info.vocab_size}, got {token_id}"
                )


def outputs_to_continue(resume: Resume) -> tuple[OutputSoFar, ...]:
    """Each output without its last token. The engine repeats it, and with it an end that the client missed."""
    return tuple(OutputSoFar(index=output.index, token_ids=output.token_ids[:-1]) for output in resume.outputs)
