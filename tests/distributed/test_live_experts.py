"""Experts that move between ranks during generation change no token, wherever their copies are."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider import LLM, SamplingParams
from outrider.workers.types.counters import ExpertFigures

CACHE = 128 << 20
PROMPTS = [
    text
    for texts in json.loads((Path(__file__).parents[2] / "cluster" / "client" / "prompts.json").read_text()).values()
    for text in texts[:2]
]
RESTLESS = {"enable_eplb": True, "eplb_window_size": 20, "eplb_step_interval": 1}
TP2 = {"tensor_parallel_size": 2, "expert_parallel_size": 2}
TP4 = {"tensor_parallel_size": 4, "expert_parallel_size": 4}
DP2 = {"data_parallel_size": 2, "expert_parallel_size": 2}
PP2 = {"pipeline_parallel_size": 2, **DP2}


def _tokens(llm: LLM, speculation: str = "auto") -> list[list[int]]:
    found = []
    for temperature in (0.0, 1.0):
        params = [
            SamplingParams(temperature=temperature, seed=i, max_tokens=96, ignore_eos=True, speculation=speculation)
            for i in range(len(PROMPTS))
        ]
        found += [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]
    return found


def _figures(llm: LLM) -> ExpertFigures:
    """The leader's, once it has reported twice, so once since we asked."""
    for _ in range(2):
        before = llm.status()[0]
        while llm.status()[0] is before:
            time.sleep(0.02)
    return llm.status()[0].counters.experts


@pytest.fixture(scope="module")
def alone() -> Iterator[list[list[int]]]:
    with LLM("scout", kv_cache_memory_bytes=CACHE) as llm:
        yield _tokens(llm, "off")


def _assert_moved_and_same(wanted: list[list[int]], settings: dict[str, Any]) -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE, **RESTLESS, **settings) as llm:
        found, figures = _tokens(llm), _figures(llm)

    assert found == wanted
    assert figures.replacements > 1, "nothing moved: equality says little"
    assert figures.moves >= figures.replacements
    assert sorted(figures.imbalance) == list(range(1, 13)), "scout's layers with experts, its MTP module's the last"


@pytest.mark.parametrize("redundant", [pytest.param(0, marks=pytest.mark.full), 4])
def test_experts_that_move_during_generation_change_no_token(alone: list[list[int]], redundant: int) -> None:
    _assert_moved_and_same(alone, {**TP2, "num_redundant_experts": redundant})


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("redundant", [0, 4])
@pytest.mark.parametrize("sizes", [DP2, TP4, PP2], ids=["DP2+EP2", "TP4+EP4", "PP2xDP2+EP2"])
def test_nor_on_any_other_split(alone: list[list[int]], sizes: dict[str, int], redundant: int) -> None:
    _assert_moved_and_same(alone, {**sizes, "num_redundant_experts": redundant})


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sizes", [TP2, DP2], ids=["TP2+EP2", "DP2+EP2"])
def test_nor_on_torchs_path(sizes: dict[str, int]) -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE, kernels="torch") as llm:
        wanted = _tokens(llm, "off")
    _assert_moved_and_same(wanted, {**sizes, "kernels": "torch", "num_redundant_experts": 2})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_redundant_experts": 3}, "expert_parallel_size=2 does not divide the model's 8 experts and 3 redundant"),
        ({"num_redundant_experts": 10}, "num_redundant_experts=10 would put two copies of one of 8 experts on one"),
    ],
)
def test_copies_that_do_not_fit_are_refused_before_anything_starts(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLM("scout", **TP2, **RESTLESS, **settings)
