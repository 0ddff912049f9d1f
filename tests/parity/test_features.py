"""Every sampling feature gives the same tokens at any depth, on any number of stages, alone, in company and preempted.

The reference is the plainest run: speculation off, alone, one stage.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider import LLM, SamplingParams
from outrider.workers.text.outputs import CompletionOutput

FEATURES: dict[str, dict[str, Any]] = {
    "logit_bias": {"logit_bias": {10: 3.0, 200: -5.0, 13: 2.0}},
    "allowed_token_ids": {"allowed_token_ids": [1, *range(100, 4096, 3)]},
    "bad_words": {"bad_words": ["return", "the", "self.", "of the", "):\n"]},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "frequency_penalty": {"frequency_penalty": 0.8},
    "presence_penalty": {"presence_penalty": 1.5, "temperature": 0.0},
    "min_tokens": {"min_tokens": 12, "stop_token_ids": [10, 13, 270]},
    "stop": {"stop": ["e", "("], "min_tokens": 4},
    "n": {"n": 3, "presence_penalty": 0.5},
    "logprobs": {"logprobs": 2, "repetition_penalty": 1.1},
    "cut": {"top_p": 0.9, "top_k": 40, "min_p": 0.02, "frequency_penalty": 0.3},
    "json": {"structured_outputs": {"json": {"type": "object"}}, "temperature": 1.0},
    "regex": {"structured_outputs": {"regex": r"(if|for) [a-z]+ in [a-z]+(, [a-z]+)*"}, "frequency_penalty": 0.2},
    "choice": {"structured_outputs": {"choice": ["the first of them", "the second", "and another"]}, "n": 3},
    "grammar": {"structured_outputs": {"grammar": 'start: (WORD " ")+\nWORD: /[a-z]+/'}, "temperature": 0.0},
    "reasoning": {
        "structured_outputs": {"regex": "[a-z ]+[.]"}, "reasoning": True, "logit_bias": {6: 17.0}, "min_tokens": 4,
    },
    "all": {
        "logit_bias": {10: 1.0}, "bad_words": ["the", "of the"], "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.2, "top_p": 0.95, "min_tokens": 3, "n": 2,
    },
}  # fmt: skip
LEAST_OF_PLAIN = 0.75  # of the acceptance of drafts without rules, that of text which they bend
Seen = list[tuple[list[int], str, str | None, Any]]


@pytest.fixture(scope="module")
def one_stage() -> Iterator[LLM]:
    with LLM("scout") as llm:
        yield llm


@pytest.fixture(scope="module")
def two_stages() -> Iterator[LLM]:
    with LLM("scout", pipeline_parallel_size=2) as llm:
        yield llm


def _prompts(count: int) -> list[str]:
    texts = json.loads((Path(__file__).parents[2] / "cluster" / "client" / "prompts.json").read_text())
    both = [*texts["code"], *texts["prose"]]
    return both[:: len(both) // count][:count]


def _outputs(
    llm: LLM, prompts: list[str], feature: str, speculation: str | int, tokens: int, *, alone: bool = False
) -> list[CompletionOutput]:
    params = [
        SamplingParams(**{"temperature": 0.8, "seed": i, "max_tokens": tokens, "speculation": speculation}
                       | FEATURES.get(feature, {}))
        for i in range(len(prompts))
    ]  # fmt: skip
    batches = [([p], [q]) for p, q in zip(prompts, params, strict=True)] if alone else [(prompts, params)]
    return [out for some, own in batches for result in llm.generate(some, own) for out in result.outputs]


def _seen(outputs: list[CompletionOutput]) -> Seen:
    return [(out.token_ids, out.text, out.finish_reason, out.logprobs) for out in outputs]


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_gives_the_same_tokens_at_every_depth_on_one_and_two_stages(
    one_stage: LLM, two_stages: LLM, feature: str
) -> None:
    prompts = _prompts(2)
    expected = _seen(_outputs(one_stage, prompts, feature, "off", 16, alone=True))

    for llm, speculation in ((one_stage, 4), (one_stage, "auto"), (two_stages, 3), (two_stages, "off")):
        assert _seen(_outputs(llm, prompts, feature, speculation, 16)) == expected, speculation


def test_drafts_of_every_feature_are_accepted_about_as_often_as_plain_ones(one_stage: LLM) -> None:
    """A drafter that saw fewer rules would lose most of its drafts: its best guesses are what they rule out."""
    rates = {}
    features = ("logit_bias", "allowed_token_ids", "bad_words", "repetition_penalty", "frequency_penalty", "cut", "all")
    for feature in ("plain", *features):
        outputs = _outputs(one_stage, _prompts(6), feature, 1, 24)
        counts = [out.speculation for out in outputs if out.speculation]
        rates[feature] = sum(c.accepted for c in counts) / sum(c.drafted for c in counts)

    assert min(rates.values()) > LEAST_OF_PLAIN * rates["plain"], rates


def test_a_feature_gives_the_same_tokens_when_sequences_are_preempted(one_stage: LLM) -> None:
    prompts = [text[:80] for text in _prompts(8)]
    expected = _seen(_outputs(one_stage, prompts, "all", "off", 40))

    with LLM("scout", kv_cache_memory_bytes=9 << 20, max_model_len=160, max_num_batched_tokens=48) as crowded:
        found = _seen(_outputs(crowded, prompts, "all", 3, 40))

    assert found == expected


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("feature", FEATURES)
def test_twenty_prompts_at_every_depth_on_one_and_two_stages(one_stage: LLM, two_stages: LLM, feature: str) -> None:
    prompts = _prompts(20)
    expected = _seen(_outputs(one_stage, prompts, feature, "off", 48, alone=True))

    for llm in (one_stage, two_stages):
        for speculation in ("off", 1, 4, "auto"):
            assert _seen(_outputs(llm, prompts, feature, speculation, 48)) == expected, (speculation, llm)
