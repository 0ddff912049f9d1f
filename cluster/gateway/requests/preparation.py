"""Converts a message to a checked request: the slow work before a replica is chosen. Independent of queues."""

from dataclasses import dataclass

from outrider.cluster.api.generation import GenerateCall
from outrider.cluster.gateway.requests.limits import RequestLimits
from outrider.cluster.gateway.requests.prompts import PromptEncoder, prompt_name
from outrider.cluster.gateway.requests.resumption import check_resume
from outrider.cluster.gateway.routing.load import PrefixKeys
from outrider.proto import inference_pb2
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.types.requests.sampling_params import SamplingParams

INLINE_BYTES = 4096  # smaller messages take less than a millisecond; larger ones are prepared in a thread


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """A request that was checked against an engine's `info`."""

    call: GenerateCall
    token_ids: tuple[int, ...]
    params: SamplingParams
    prefix: PrefixKeys
    info: EngineInfo
    cache_salt: str

    def check(self, info: EngineInfo, *, has_tokenizer: bool) -> None:
        """Checks it against another engine. Raises ValueError, which names the parameter."""
        name = prompt_name(self.call.prompt)
        info.check(self.token_ids, self.params, has_tokenizer=has_tokenizer, prompt_name=name)
        if self.call.resume is not None:
            check_resume(self.call.resume, self.call, len(self.token_ids), info)


def is_small(message: inference_pb2.GenerateRequest) -> bool:
    """Whether preparing it is fast enough for the event loop. Chat templates and bad words may be slow."""
    slow = message.HasField("messages") or len(message.sampling.bad_words) > 0
    return not slow and message.ByteSize() <= INLINE_BYTES


def prepare(
    call: GenerateCall, encoder: PromptEncoder, limits: RequestLimits, info: EngineInfo, cache_salt: str = ""
) -> PreparedRequest:
    """`cache_salt`: requests with the same salt share cached prefixes. Raises ValueError, which names the field."""
    token_ids = encoder.encode(call.prompt)
    limits.check_prompt(len(token_ids), prompt_name(call.prompt))
    prepared = PreparedRequest(
        call=call,
        token_ids=token_ids,
        params=encoder.engine_params(call, token_ids),
        prefix=PrefixKeys.of(token_ids, cache_salt),
        info=info,
        cache_salt=cache_salt,
    )
    prepared.check(info, has_tokenizer=encoder.tokenizer is not None)
    return prepared
