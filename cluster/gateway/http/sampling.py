"""SamplingParams from the fields of HTTP requests. Pure. ValueError names the field that is invalid."""

from typing import Any

from outrider.cluster.gateway.http.types import ResponseFormat, SamplingFields, Speculation
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

_SAME_NAME = (
    *("n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "min_tokens", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "bad_words", "allowed_token_ids"),
    *("skip_special_tokens", "include_stop_str_in_output"),
)


def sampled(request: SamplingFields, **others: Any) -> SamplingParams:
    """`others`: fields of SamplingParams whose name or meaning in the request differs. None means absent."""
    values = {name: getattr(request, name) for name in _SAME_NAME}
    values |= {"structured_outputs": structured(request.response_format, request.structured_outputs)}
    values |= speculated(request.speculation, request.drafter)
    if request.logit_bias is not None:
        values["logit_bias"] = {_token_id(key): bias for key, bias in request.logit_bias.items()}
    return params_of(values | others)


def params_of(values: dict[str, Any]) -> SamplingParams:
    """Values that are None take their default; for max_tokens that is the model's maximum length."""
    if values.get("top_k") == -1:  # as in vLLM, the same as 0
        values = {**values, "top_k": 0}
    return SamplingParams(**{"max_tokens": None} | {name: value for name, value in values.items() if value is not None})


def _token_id(key: str) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 10:
        raise ValueError(f"logit_bias must be by token id, got {key[:40]!r}")
    return int(key)


def structured(format: ResponseFormat | None, given: dict[str, Any] | None = None) -> StructuredOutputsParams | None:
    """OpenAI's `response_format`, or vLLM's `structured_outputs`."""
    if format is None or format.type == "text":
        return None if given is None else StructuredOutputsParams.of(given)
    if given is not None:
        raise ValueError("structured_outputs and response_format must not both be given")
    if format.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if format.json_schema is None or format.json_schema.value is None:
        raise ValueError("response_format.json_schema must have a schema")
    return StructuredOutputsParams(json=format.json_schema.value)


def speculated(given: str | int | Speculation | None, drafter: str | None) -> dict[str, Any]:
    """`speculation` and `drafter` of SamplingParams."""
    if not isinstance(given, Speculation):
        depth = int(given) if isinstance(given, str) and given.isascii() and given.isdigit() else given
        return {"speculation": depth, "drafter": drafter}
    if given.mode in ("auto", "off") and given.depth is not None:
        raise ValueError(f"speculation.depth is not valid with mode {given.mode}")
    if given.mode == "fixed" and given.depth is None:
        raise ValueError("speculation.depth must be given with mode fixed")
    mode = given.mode if given.depth is None else given.depth
    return {"speculation": mode, "drafter": given.drafter or drafter}
