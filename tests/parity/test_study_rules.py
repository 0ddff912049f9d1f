"""Rejection sampling and block verification through the engine: the target's distribution, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_config, write_checkpoint

from outrider import LLM, SamplingParams

VOCAB, PROMPT, TOKENS = 6, [2, 3, 4], 3
SETTINGS: dict[str, Any] = {"kv_cache_memory_bytes": 8 << 20, "max_model_len": 64, "enable_prefix_caching": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, random_config(3, vocab_size=VOCAB, hidden_size=32), seed=4)
    return path


@pytest.fixture(scope="module")
def target(checkpoint: Path) -> dict[tuple[int, ...], float]:
    return _target(checkpoint)


def _target(path: Path) -> dict[tuple[int, ...], float]:
    """The probability of every text of TOKENS tokens, from the model's own log-probabilities, without drafts."""
    texts: dict[tuple[int, ...], float] = {(): 0.0}
    with LLM(str(path), speculation="off", kernels="torch", **SETTINGS) as llm:
        for _ in range(TOKENS):
            prompts = [[*PROMPT, *text] for text in texts]
            outputs = llm.generate(prompts, SamplingParams(max_tokens=1, logprobs=VOCAB, ignore_eos=True))
            longer = {}
            for (text, sofar), out in zip(texts.items(), outputs, strict=True):
                assert out.outputs[0].logprobs is not None
                for token, entry in out.outputs[0].logprobs[0].items():
                    longer[(*text, token)] = sofar + entry.logprob
            texts = longer
    return {text: float(np.exp(value)) for text, value in texts.items()}


def _drawn(path: Path, rule: str, draws: int) -> tuple[dict[tuple[int, ...], int], int]:
    """How often each text came out, of requests that differ in their seed; and how many drafts were accepted."""
    counts = dict.fromkeys(itertools.product(range(VOCAB), repeat=TOKENS), 0)
    accepted = 0
    with LLM(str(path), speculation=2, verification=rule, **SETTINGS) as llm:
        params = [SamplingParams(max_tokens=TOKENS + 2, ignore_eos=True, seed=seed) for seed in range(draws)]
        for out in llm.generate([PROMPT] * draws, params):
            counts[tuple(out.outputs[0].token_ids[:TOKENS])] += 1
            assert out.outputs[0].speculation is not None
            accepted += out.outputs[0].speculation.accepted
    return counts, accepted


def _check(target: dict[tuple[int, ...], float], path: Path, rule: str, draws: int) -> None:
    """Chi-square over all texts that are expected often enough, the others together; six deviations are no chance."""
    counts, accepted = _drawn(path, rule, draws)
    expected = np.array([target[text] * draws for text in counts])
    seen = np.array(list(counts.values()))
    often = expected >= 5
    expected = np.append(expected[often], expected[~often].sum())
    seen = np.append(seen[often], seen[~often].sum())
    chi_square, freedom = float(((seen - expected) ** 2 / expected).sum()), len(expected) - 1
    assert accepted > draws / 10
    assert freedom > 10
    assert chi_square < freedom + 6 * np.sqrt(2 * freedom), (rule, chi_square, freedom)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_texts_come_as_often_as_the_model_says(
    checkpoint: Path, target: dict[tuple[int, ...], float], rule: str
) -> None:
    _check(target, checkpoint, rule, 600)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_two_hundred_thousand_texts_come_as_often_as_the_model_says(
    checkpoint: Path, target: dict[tuple[int, ...], float], rule: str
) -> None:
    _check(target, checkpoint, rule, 200_000)


def test_greedy_text_is_the_same_under_every_rule(checkpoint: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    texts = []
    for rule in ("coupled", "rejection", "block"):
        with LLM(str(checkpoint), speculation=3, verification=rule, kernels="torch", **SETTINGS) as llm:
            texts.append(llm.generate([PROMPT], params)[0].outputs[0].token_ids)

    assert texts[0] == texts[1] == texts[2]


def test_a_rule_for_study_is_warned_of_and_refuses_what_it_cannot_do(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LLM(str(checkpoint), speculation=2, verification="block", **SETTINGS) as llm:
        assert 'verification="block" is for experiments: the text depends on the drafts' in caplog.text
        with pytest.raises(ValueError, match='speculation must be "off" or a number'):
            llm.generate([PROMPT], SamplingParams(speculation="auto"))
        with pytest.raises(ValueError, match="drafter must be one that this engine loaded"):
            llm.generate([PROMPT], SamplingParams(drafter="lookup"))
