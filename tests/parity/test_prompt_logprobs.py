"""Log-probabilities of the prompt: those of the model alone, however it was computed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rounds import CompiledModel, Rows

from outrider import LLM, SamplingParams
from outrider.workers.config import resolve_model
from outrider.workers.text.outputs import Logprob

CACHE = 128 << 20
PROMPT = list(range(100, 170))
Scores = list[dict[int, Logprob] | None]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("scout", kv_cache_memory_bytes=CACHE, max_num_batched_tokens=32) as llm:
        yield llm


def _scores(llm: LLM, prompt: list[int] = PROMPT, **params: Any) -> Scores:
    given = {"max_tokens": 4, "temperature": 0, "prompt_logprobs": 3, **params}
    found = llm.generate([prompt], SamplingParams(**given))[0].prompt_logprobs
    assert found is not None
    return found


def test_they_are_those_of_the_raw_logits(llm: LLM) -> None:
    model = CompiledModel.load(resolve_model("scout"))
    expected = model.logits(model.hidden(Rows(PROMPT, 0, range(8)))).double().log_softmax(-1)

    found = _scores(llm)

    assert found[0] is None
    assert len(found) == len(PROMPT)
    for place, entry in enumerate(found[1:], 1):
        assert entry is not None
        row, token = expected[place - 1], PROMPT[place]
        best = row.topk(3).indices.tolist()
        assert list(entry) == [token, *(other for other in best if other != token)]
        assert entry[token].rank == int((row > row[token]).sum()) + 1
        values = torch.tensor([one.logprob for one in entry.values()], dtype=torch.float64)
        torch.testing.assert_close(values, row[list(entry)], atol=1e-4, rtol=0)


def test_they_are_the_same_in_any_chunks_with_drafts_a_warm_cache_penalties_and_company(llm: LLM) -> None:
    expected = _scores(llm)

    assert _scores(llm) == expected  # the cache holds the prompt now
    assert _scores(llm, speculation=3, presence_penalty=1.0, logprobs=1) == expected
    assert _scores(llm, n=3, temperature=1.0, seed=1) == expected
    own = SamplingParams(prompt_logprobs=3, max_tokens=4, temperature=0)
    together = llm.generate([[5, 6, 7], PROMPT, PROMPT[:40]], [SamplingParams(max_tokens=9), own, own])
    assert together[0].prompt_logprobs is None
    assert together[1].prompt_logprobs == expected
    assert together[2].prompt_logprobs == expected[:40]


def test_they_are_the_same_on_two_stages_and_after_preemption(llm: LLM) -> None:
    prompts = [[token + shift for token in PROMPT] for shift in range(6)]
    params = SamplingParams(prompt_logprobs=2, max_tokens=40, temperature=0, presence_penalty=0.3)
    expected = [(out.outputs[0].token_ids, out.prompt_logprobs) for out in llm.generate(prompts, params)]

    with LLM(
        "scout", kv_cache_memory_bytes=CACHE // 14, max_model_len=128, max_num_batched_tokens=24,
        pipeline_parallel_size=2,
    ) as split:  # fmt: skip
        found = [(out.outputs[0].token_ids, out.prompt_logprobs) for out in split.generate(prompts, params)]

    assert found == expected


def test_a_prompt_of_one_token_has_none_to_give(llm: LLM) -> None:
    assert _scores(llm, [7]) == [None]
