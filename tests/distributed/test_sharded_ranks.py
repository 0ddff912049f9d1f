"""Replicas of several ranks as local processes: text and log-probabilities are those of one process, to the bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider import LLM, SamplingParams
from outrider.workers.text.outputs import CompletionOutput

Text = tuple[list[int], list[dict[int, float]]]
CACHE = 256 << 20
FEW, DEPTH = 4, 3  # prompts that are drafted for whatever "auto" makes of a busy machine


def split(pipeline: int = 1, data: int = 1, tensor: int = 1, experts: int = 1) -> dict[str, int]:
    sizes = {"pipeline": pipeline, "data": data, "tensor": tensor, "expert": experts}
    return {f"{name}_parallel_size": size for name, size in sizes.items()}


ALWAYS = {"TP2+EP2": split(tensor=2, experts=2)}
FULL = {
    "TP2": split(tensor=2),
    "TP4": split(tensor=4),
    "TP4+EP4": split(tensor=4, experts=4),
    "DP2": split(data=2),
    "DP2+EP2": split(data=2, experts=2),
    "DP2xTP2+EP4": split(data=2, tensor=2, experts=4),
    "PP2": split(pipeline=2),
    "PP3": split(pipeline=3),
    "PP2xTP2": split(pipeline=2, tensor=2),
    "PP2xTP2+EP2": split(pipeline=2, tensor=2, experts=2),
    "PP2xDP2+EP2": split(pipeline=2, data=2, experts=2),
}


def _prompts(count: int) -> list[str]:
    texts = json.loads((Path(__file__).parents[2] / "cluster" / "client" / "prompts.json").read_text())
    both = [text for pair in zip(texts["code"], texts["prose"], strict=False) for text in pair]
    return both[:count]


def _outputs(
    llm: LLM, prompts: list[str], temperature: float, tokens: int, speculation: str | int
) -> list[CompletionOutput]:
    params = [
        SamplingParams(temperature=temperature, seed=i, max_tokens=tokens, logprobs=20, speculation=speculation)
        for i in range(len(prompts))
    ]
    return [output.outputs[0] for output in llm.generate(prompts, params)]


def _text(output: CompletionOutput) -> Text:
    return output.token_ids, [{token: each.logprob for token, each in row.items()} for row in output.logprobs or ()]


@pytest.fixture(scope="module")
def alone() -> Iterator[LLM]:
    with LLM("scout", kv_cache_memory_bytes=CACHE) as llm:
        yield llm


def _assert_same(alone: LLM, sizes: dict[str, int], prompts: int, tokens: int, **settings: Any) -> None:
    accepted = 0
    passes = [(0.0, prompts, "auto"), (1.0, prompts, "auto"), (0.0, FEW, DEPTH)]
    with LLM("scout", kv_cache_memory_bytes=CACHE, **sizes, **settings) as llm:
        for temperature, count, speculation in passes:
            wanted = _outputs(alone, _prompts(count), temperature, tokens, "off")
            found = _outputs(llm, _prompts(count), temperature, tokens, speculation)
            assert list(map(_text, found)) == list(map(_text, wanted))
            accepted += sum(output.speculation.accepted for output in found if output.speculation)
    assert accepted > tokens, "drafts were hardly ever accepted: equality says little"


@pytest.mark.parametrize("layout", ALWAYS)
def test_text_and_log_probabilities_are_those_of_one_process(alone: LLM, layout: str) -> None:
    _assert_same(alone, ALWAYS[layout], prompts=4, tokens=20)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", [*ALWAYS, *FULL])
def test_twenty_prompts_are_the_same_on_every_split(alone: LLM, layout: str) -> None:
    _assert_same(alone, {**ALWAYS, **FULL}[layout], prompts=20, tokens=32)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", ["TP2", "DP2xTP2+EP4", "PP2xTP2+EP2"])
def test_torchs_path_is_split_alike(layout: str) -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE, kernels="torch") as alone:
        _assert_same(alone, {**ALWAYS, **FULL}[layout], prompts=4, tokens=16, kernels="torch")


def test_a_split_that_the_model_does_not_allow_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="tensor_parallel_size=3 does not divide the model's 4 attention heads"):
        LLM("scout", tensor_parallel_size=3)
