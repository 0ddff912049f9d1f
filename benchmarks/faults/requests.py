"""Requests whose outputs are compared: one parameter set for each feature that resumed streams must reproduce. Pure."""

from dataclasses import dataclass
from typing import Any

from outrider import SamplingParams
from outrider.cluster.api.generation import GenerateCall, TextPrompt
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

PARAMETER_SETS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
    "cut": {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.02},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.5},
    "rules": {"logit_bias": {10: 3.0, 200: -5.0}, "bad_words": ["return", "the", "self.", "of the"]},
    "stop ids": {"min_tokens": 12, "stop_token_ids": [10, 13, 270], "ignore_eos": False},
    "stop strings": {"min_tokens": 6, "stop": ["e", "("], "ignore_eos": False},
    "several": {"n": 3, "presence_penalty": 0.5},
    "logprobs": {"logprobs": 2, "prompt_logprobs": 2, "repetition_penalty": 1.1},
    "grammar": {
        "structured_outputs": StructuredOutputsParams(regex=r"(if|for) [a-z]+ in [a-z]+(, [a-z]+)*"),
        "ignore_eos": False,
    },
    "reasoning": {
        "structured_outputs": StructuredOutputsParams(regex="[a-z ]+[.]"),
        "reasoning": True,
        "logit_bias": {6: 12.0},
        "min_tokens": 4,
        "ignore_eos": False,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosRequest:
    """One request. Its output is the same every time, whatever faults are injected."""

    name: str
    prompt: str
    params: SamplingParams

    @property
    def call(self) -> GenerateCall:
        return GenerateCall(prompt=TextPrompt(self.prompt), params=self.params)


def chaos_requests(prompts: list[str], max_tokens: int) -> list[ChaosRequest]:
    """Every prompt with every parameter set; consecutive requests differ in both."""
    return [
        ChaosRequest(
            name=f"{name}/{number}",
            prompt=prompts[(number + index) % len(prompts)],
            params=SamplingParams(
                **{"temperature": 0.8, "ignore_eos": True, "max_tokens": max_tokens, "seed": 100 * number + index} | own
            ),
        )
        for number in range(len(prompts))
        for index, (name, own) in enumerate(PARAMETER_SETS.items())
    ]
