"""Promise 1: the text depends on neither drafts, nor companions, nor stages.

The reference of every case is the plainest run: speculation off, alone, one stage.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider import LLM, SamplingParams

Text = tuple[list[int], str, str | None]

SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "full": {"temperature": 1.0},
    "cut": {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.02},
}
SPECULATIONS: tuple[str | int, ...] = ("off", 1, 2, 4, "auto")


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
    return (texts["code"] + texts["prose"])[:: max(1, len(texts["code"] + texts["prose"]) // count)][:count]


def _generate(
    llm: LLM, prompts: list[str], sampling: str, speculation: str | int, tokens: int, together: bool
) -> list[Text]:
    params = [
        SamplingParams(seed=1000 + i, max_tokens=tokens, speculation=speculation, **SAMPLINGS[sampling])  # type: ignore[arg-type]  # a table
        for i in range(len(prompts))
    ]
    batches = [(prompts, params)] if together else [([p], [q]) for p, q in zip(prompts, params, strict=True)]
    outputs = [out.outputs[0] for some, own in batches for out in llm.generate(some, own)]
    return [(out.token_ids, out.text, out.finish_reason) for out in outputs]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_text_is_the_same_at_every_depth_alone_and_together(one_stage: LLM, sampling: str) -> None:
    prompts = _prompts(4)
    expected = _generate(one_stage, prompts, sampling, "off", 24, together=False)

    for speculation in (1, 4, "auto"):
        assert _generate(one_stage, prompts, sampling, speculation, 24, together=False) == expected
    for speculation in ("off", 2, "auto"):
        assert _generate(one_stage, prompts, sampling, speculation, 24, together=True) == expected


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_text_is_the_same_on_two_stages(one_stage: LLM, two_stages: LLM, sampling: str) -> None:
    prompts = _prompts(4)
    expected = _generate(one_stage, prompts, sampling, "off", 24, together=False)

    assert _generate(two_stages, prompts, sampling, "off", 24, together=True) == expected
    assert _generate(two_stages, prompts, sampling, 4, 24, together=False) == expected
    assert _generate(two_stages, prompts, sampling, "auto", 24, together=True) == expected


def test_drafts_are_accepted_at_all_so_that_equality_says_something(one_stage: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=32, speculation=2)

    outputs = [out.outputs[0] for out in one_stage.generate(_prompts(4), params)]

    assert sum(out.speculation.accepted for out in outputs if out.speculation) > 16


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_forty_prompts_at_every_depth_on_one_and_two_stages(
    one_stage: LLM, two_stages: LLM, sampling: str, together: bool
) -> None:
    prompts = _prompts(40)
    expected = _generate(one_stage, prompts, sampling, "off", 32, together=False)

    for llm in (one_stage, two_stages):
        for speculation in SPECULATIONS:
            assert _generate(llm, prompts, sampling, speculation, 32, together) == expected, (speculation, llm)
