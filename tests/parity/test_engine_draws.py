"""Tokens drawn through the engine, drafts and all, follow the transformed distribution: chi-square, by its definition.

The model is a small random one with a tiny vocabulary. Its raw logits come from the model alone; what the parameters
make of them is written out here in plain numpy.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_config, write_checkpoint
from numpy.typing import NDArray
from rounds import CompiledModel, Rows

from outrider import LLM, SamplingParams

VOCAB, PROMPT, OUTPUT, EOS = 12, [5, 3, 7, 3], 3, 1
TRANSFORMS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "min_p": {"min_p": 0.15},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.8},
    "min_tokens": {"min_tokens": 2, "stop_token_ids": [4, 9]},
    "logit_bias": {"logit_bias": {3: 1.0, 8: -1.5}},
    "allowed_token_ids": {"allowed_token_ids": [2, 3, 6, 7, 10]},
    "bad_words": {"bad_words_token_ids": [[6], [2, 3], [3, 3]]},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "frequency_penalty": {"frequency_penalty": 0.9},
    "presence_penalty": {"presence_penalty": -0.8},
    "several": {
        "logit_bias": {3: 1.0},
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.4,
        "top_p": 0.9,
        "min_p": 0.02,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, random_config(3, vocab_size=VOCAB), seed=3)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), kv_cache_memory_bytes=32 << 20, max_num_seqs=128) as llm:
        yield llm


def plain_probabilities(raw: NDArray[np.float64], said: list[int], params: SamplingParams) -> NDArray[np.float64]:
    """vLLM's transforms of one row of logits after the output `said`, one by one."""
    z = raw.copy()
    for token, bias in (params.logit_bias or {}).items():
        z[token] += bias
    banned = [] if params.allowed_token_ids is None else [v for v in range(VOCAB) if v not in params.allowed_token_ids]
    banned += [w[-1] for w in params.bad_words_token_ids or () if said[len(said) - len(w) + 1 :] == list(w[:-1])]
    if len(said) < params.min_tokens:
        banned += [EOS, *(params.stop_token_ids or ())]
    z[banned] = -np.inf
    counts = np.array([said.count(v) for v in range(VOCAB)])
    known = (counts > 0) | np.isin(np.arange(VOCAB), PROMPT)
    z[known] = np.where(z > 0, z / params.repetition_penalty, z * params.repetition_penalty)[known]
    z -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    p = np.exp((z - z.max()) / params.temperature)
    p[p < params.min_p * p.max()] = 0
    order = np.argsort(-p, kind="stable")
    p[order[params.top_k or VOCAB :]] = 0
    p /= p.sum()
    kept = int(np.searchsorted(np.cumsum(p[order]), params.top_p - 1e-12)) + 1
    p[order[kept:]] = 0
    return np.asarray(p / p.sum())


def raw_logits(model: CompiledModel, tokens: list[int]) -> NDArray[np.float64]:
    return model.logits(model.hidden(Rows(tokens, 0, [0, 1])))[-1].double().numpy()


def chi_square_is_unsuspicious(counts: Counter[int], p: NDArray[np.float64]) -> bool:
    """At 1e-4 or so. Entries that are expected less than five times count as one."""
    total = sum(counts.values())
    seen = np.array([counts[v] for v in range(len(p))], dtype=float)
    if seen[p == 0].any():
        return False
    often = p * total >= 5
    pairs = [(seen[v], p[v] * total) for v in np.flatnonzero(often)]
    if (rare := (p[~often] * total).sum()) >= 5:
        pairs.append((seen[~often].sum(), rare))
    freedom = max(len(pairs) - 1, 1)
    statistic = sum((found - expected) ** 2 / expected for found, expected in pairs)
    return bool(statistic < freedom + 4 * np.sqrt(2 * freedom) + 8)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sequences", [1024, pytest.param(66_688, marks=pytest.mark.full)])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_draws_through_the_engine_follow_the_transformed_distribution(
    llm: LLM, folder: Path, transform: str, sequences: int
) -> None:
    """66,688 sequences of three tokens are 200,000 draws. The seeds are fixed: this passes always or never."""
    settings = {"max_tokens": OUTPUT, "ignore_eos": True, "speculation": 2, **TRANSFORMS[transform]}
    requests = [SamplingParams(seed=seed, n=128, **settings) for seed in range(-(-sequences // 128))]

    results = llm.generate([PROMPT] * len(requests), requests)
    outputs = [out for result in results for out in result.outputs]
    assert sum(out.speculation.accepted for out in outputs if out.speculation) > sequences / 50
    drawn: dict[tuple[int, ...], Counter[int]] = {}
    for out in outputs:
        for place, token in enumerate(out.token_ids):
            drawn.setdefault(tuple(out.token_ids[:place]), Counter())[token] += 1

    model = CompiledModel.load(folder)
    judged = 0
    for said, counts in drawn.items():
        if counts.total() >= 100:
            p = plain_probabilities(raw_logits(model, [*PROMPT, *said]), list(said), requests[0])
            assert chi_square_is_unsuspicious(counts, p), (said, counts, p * counts.total())
            judged += counts.total()
    assert judged > sequences
