"""From a message to a checked request: all that takes its time before a replica is chosen. Knows nothing of queues."""

from dataclasses import dataclass

from outrider.cluster.api.generation import GenerateCall
from outrider.cluster.gateway.requests.limits import RequestLimits
from outrider.cluster.gateway.requests.prompts import PromptEncoder, prompt_name
from outrider.cluster.gateway.requests.resumption import check_resume
from outrider.cluster.gateway.routing.load import PrefixKeys
from outrider.proto import inference_pb2
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.types.sampling_params import SamplingParams

INLINE_BYTES = 4096  # a smaller message takes less than a millisecond; another is for a thread


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """A request that an engine as `info` has it can do."""

    call: GenerateCall
    token_ids: tuple[int, ...]
    params: SamplingParams
    prefix: PrefixKeys
    info: EngineInfo
    cache_salt: str

    def check(self, info: EngineInfo, *, has_tokenizer: bool) -> None:
        """Whether another engine can. ValueError names the parameter."""
        name = prompt_name(self.call.prompt)
        info.check(self.token_ids, self.params, has_tokenizer=has_tokenizer, prompt_name=name)
        if self.call.resume is not None:
            check_resume(self.call.resume, self.call, len(self.token_ids), info)


def is_small(message: inference_pb2.GenerateRequest) -> bool:
    """Whether it can be prepared where nothing may wait. A chat template may do anything; bad words are many texts."""
    slow = message.HasField("messages") or len(message.sampling.bad_words) > 0
    return not slow and message.ByteSize() <= INLINE_BYTES


def prepare(
    call: GenerateCall, encoder: PromptEncoder, limits: RequestLimits, info: EngineInfo, cache_salt: str = ""
) -> PreparedRequest:
    """`cache_salt`: requests with an equal one share cached prefixes. ValueError names what is wrong."""
    token_ids = encoder.encode(call.prompt)
    limits.check_prompt(len(token_ids), prompt_name(call.prompt))
    prepared = PreparedRequest(
        call=call,
        token_ids=token_ids,
        params=encoder.settle(call, token_ids),
        prefix=PrefixKeys.of(token_ids, cache_salt),
        info=info,
        cache_salt=cache_salt,
    )
    prepared.check(info, has_tokenizer=encoder.tokenizer is not None)
    return prepared
