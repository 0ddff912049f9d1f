"""Draws and transforms, against a plain reference that follows the design's sentences one by one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.kernels import reference
from outrider.workers.sampling.ordering import FIRST_WIDTH
from outrider.workers.sampling.sampling import SampleRow, lowest_argmax, sample, sample_with_leads, transform
from outrider.workers.sampling.token_rules import TokenRules
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.round import ints

EOS = 1


PROMPT, OUTPUT = (2, 4, 4, 8), (3, 5, 3)


def row(
    position: int = 9,
    output_tokens: int = 3,
    seed: int = 5,
    output_index: int = 0,
    output: Sequence[int] = OUTPUT,
    **params: object,
) -> SampleRow:
    """Where a rule looks back it sees the prompt `PROMPT` and the output `output`."""
    checked = SamplingParams(**params)
    return SampleRow(
        params=checked,
        seed=seed,
        output_index=output_index,
        position=position,
        output_tokens=output_tokens,
        eos_token_ids=(EOS,),
        rules=(rules := TokenRules.of(checked, sorted(set(PROMPT)))),
        allowed=rules.allowed,
        output=ints(output),
    )


def plain_rules(logits: list[float], at: SampleRow) -> list[float]:
    """The design's order of what comes before temperature, on one row, in plain Python."""
    params, output, scores = at.params, at.output.tolist(), list(logits)
    for token_id, bias in (params.logit_bias or {}).items():
        scores[token_id] += bias
    for token_id in range(len(scores)):
        if params.allowed_token_ids is not None and token_id not in params.allowed_token_ids:
            scores[token_id] = -math.inf
    for word in params.bad_words_token_ids or ():
        if [*output, word[-1]][-len(word) :] == list(word):
            scores[word[-1]] = -math.inf
    if at.output_tokens < params.min_tokens:
        for token_id in (*at.eos_token_ids, *(params.stop_token_ids or ())):
            scores[token_id] = -math.inf
    for token_id in range(len(scores)):
        count = output.count(token_id)
        if count or token_id in PROMPT:
            up = scores[token_id] <= 0
            scores[token_id] *= params.repetition_penalty if up else 1 / params.repetition_penalty
        scores[token_id] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
    return scores


def plain_scores(logits: list[float], at: SampleRow) -> list[float]:
    """The design's order of transforms on one row, in plain Python."""
    params, scores = at.params, plain_rules(logits, at)
    if params.temperature == 0:
        return scores
    scores = [score / params.temperature for score in scores]
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    kept = [v for v in range(len(scores)) if weights[v] >= params.min_p * (1 - 1e-12)]
    kept.sort(key=lambda v: (-scores[v], v))
    kept = kept[: params.top_k or len(kept)]
    if params.top_p < 1:
        goal, reached, count = params.top_p * math.fsum(weights[v] for v in kept), 0.0, 0
        while count < len(kept) and reached < goal - 1e-12:
            reached += weights[kept[count]]
            count += 1
        kept = kept[:count]
    return [scores[v] if v in kept else -math.inf for v in range(len(scores))]


TRANSFORMS: dict[str, dict[str, Any]] = {
    "none": {},
    "temperature": {"temperature": 0.7},
    "min_p": {"min_p": 0.2},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.8},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": [4]},
    "logit_bias": {"logit_bias": {3: 1.5, 0: -2.0, 10: 0.25}},
    "allowed_token_ids": {"allowed_token_ids": [9, 1, 4, 7]},
    "bad_words": {"bad_words_token_ids": [[7], [5, 3, 9], [3, 3], [3, 0], [4, 5, 3, 2]]},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "frequency_penalty": {"frequency_penalty": 0.6},
    "presence_penalty": {"presence_penalty": -1.1},
    "all": {
        "temperature": 1.3, "min_p": 0.02, "top_k": 7, "top_p": 0.9, "min_tokens": 9, "logit_bias": {3: 2.0, 6: 1.0},
        "bad_words_token_ids": [[3, 0]], "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1,
    },
}  # fmt: skip


@pytest.mark.parametrize("draws", [10_000, pytest.param(200_000, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "params",
    [
        pytest.param(params, id=name, marks=pytest.mark.full if name.endswith("_penalty") else [])  # "all" has them
        for name, params in TRANSFORMS.items()
    ],
)
def test_draws_follow_the_transformed_distribution(params: dict[str, Any], draws: int) -> None:
    """Chi-square; the seeds are fixed, so this passes always or never."""
    chunk = 10_000
    logits = [1.2, 0.9, -0.5, 2.0, 0.9, -2.0, 0.1, 1.7, -1.0, 0.4, 0.0]
    at, counts = row(**params), np.zeros(len(logits))
    for first in range(0, draws, chunk):
        rows = [replace(at, position=position) for position in range(first, first + chunk)]
        counts += np.bincount(sample(torch.tensor([logits]).repeat(chunk, 1), rows), minlength=len(logits))

    weights = np.exp(plain_scores(logits, at))
    expected = draws * weights / weights.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 3.3 * math.sqrt(2 * freedom) + 5  # about 0.1 %


LOGIT = st.sampled_from([-3.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5, 2.0])  # few values: many ties
PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
        "top_k": st.sampled_from([0, 1, 2, 5, 100]),
        "top_p": st.sampled_from([1.0, 0.999, 0.6, 0.31, 1e-9]),
        "min_tokens": st.sampled_from([0, 9]),
        "stop_token_ids": st.sampled_from([None, [0], [2, 3]]),
        "logit_bias": st.sampled_from([None, None, {0: 1.0, 8: -0.5}]),
        "allowed_token_ids": st.sampled_from([None, None, [2, 5, 8, 0]]),
        "bad_words_token_ids": st.sampled_from([None, None, [[4], [3, 6]]]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "presence_penalty": st.sampled_from([0.0, -0.25]),
    }
)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(st.lists(LOGIT, min_size=9, max_size=9), PARAMS), min_size=1, max_size=5))
def test_transforms_equal_the_plain_reference_whatever_else_is_in_the_call(
    rows: list[tuple[list[float], dict[str, Any]]],
) -> None:
    sample_rows = [row(**params) for _, params in rows]

    scores = transform(torch.tensor([logits for logits, _ in rows]), sample_rows)

    for found, (logits, _), at in zip(scores, rows, sample_rows, strict=True):
        assert found.tolist() == pytest.approx(plain_scores(logits, at))


@settings(max_examples=100, deadline=None)
@given(logits=st.lists(LOGIT, min_size=9, max_size=9), params=PARAMS, position=st.integers(0, 10**6))
def test_a_draw_is_the_argmax_of_scores_and_noise(logits: list[float], params: dict[str, Any], position: int) -> None:
    at = row(position=position, **params)
    scores = np.array(plain_scores(logits, at))
    if params["temperature"]:
        scores += reference.gumbel_noise(at.seed, at.output_index, position, len(logits))

    assert sample(torch.tensor([logits]), [at]).item() == int(scores.argmax())


def mixed_rows(count: int) -> list[SampleRow]:
    kinds = [
        *TRANSFORMS.values(),
        {"temperature": 0.0},
        {"top_k": FIRST_WIDTH + 100},
        {"top_p": 0.999, "temperature": 3.0},
    ]
    return [row(position=20 + i, output_index=i, **kinds[i % len(kinds)]) for i in range(count)]


@pytest.mark.parametrize("vocab", [4096, 5003])
def test_a_row_gives_the_same_bits_and_token_alone_as_in_any_company(vocab: int) -> None:
    rows = mixed_rows(23)
    logits = torch.randn(len(rows), vocab, generator=torch.Generator().manual_seed(1)) * 2
    scores, tokens = transform(logits, rows), sample(logits, rows)

    for i, at in enumerate(rows):
        assert torch.equal(transform(logits[i : i + 1], [at])[0], scores[i])
        assert sample(logits[i : i + 1], [at]).item() == tokens[i]
    backwards = sample(logits.flip(0), rows[::-1])
    assert torch.equal(backwards.flip(0), tokens)


def test_sampling_leaves_the_logits_as_they_are() -> None:
    rows = mixed_rows(10)
    logits = torch.randn(len(rows), 4096)
    before = logits.clone()

    sample(logits, rows)
    sample(logits, [row(temperature=0.0, min_tokens=9)] * len(rows))

    assert torch.equal(logits, before)


@pytest.mark.parametrize("vocab", [9, 4096, 129280])
@pytest.mark.parametrize("top_k", [1, 5, FIRST_WIDTH, FIRST_WIDTH + 7])
def test_top_k_keeps_exactly_k_and_of_equals_the_lowest_ids(vocab: int, top_k: int) -> None:
    scores = transform(torch.full((1, vocab), 0.25), [row(top_k=top_k)])

    assert scores.isfinite().nonzero()[:, 1].tolist() == list(range(min(top_k, vocab)))


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.250001, 2), (0.5, 2), (0.75, 3), (0.7500001, 4), (1.0, 4)])
def test_top_p_keeps_the_shortest_prefix_that_reaches_p(top_p: float, kept: int) -> None:
    scores = transform(torch.zeros(1, 4), [row(top_p=top_p)])

    assert scores.isfinite().tolist() == [[True] * kept + [False] * (4 - kept)]


@pytest.mark.parametrize("top_p", [0.5, 0.999, 1 - 1e-12])
def test_top_p_reaches_as_far_down_a_flat_distribution_as_it_must(top_p: float) -> None:
    vocab = 20_000
    scores = transform(torch.zeros(1, vocab), [row(top_p=top_p)])

    assert scores.isfinite().sum().item() == pytest.approx(math.ceil(top_p * vocab), abs=1)


def test_top_k_keeps_exactly_k_where_the_tail_weighs_nothing() -> None:
    logits = torch.tensor([[0.0, -900.0, -2000.0, -3000.0, -4000.0]])

    assert transform(logits, [row(top_k=3)]).isfinite().sum().item() == 3


@pytest.mark.parametrize("vocab", [7, 32, 4096, 129280])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_scores_the_lowest_id_wins(vocab: int, dtype: torch.dtype) -> None:
    scores = torch.zeros(4, vocab, dtype=dtype)
    scores[1, [3, vocab - 1]] = 1
    scores[2, [vocab // 2, vocab - 1]] = 1
    scores[3, -2:] = 1

    assert lowest_argmax(scores).tolist() == [0, 3, vocab // 2, vocab - 2]


def test_greedy_is_the_plain_argmax_whatever_comes_after_temperature() -> None:
    logits = torch.randn(8, 4096)
    greedy = row(temperature=0.0, top_k=2, top_p=0.1, min_p=0.5)

    assert torch.equal(sample(logits, [greedy] * 8), logits.argmax(dim=-1))


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_end_ids_cannot_be_drawn_before_min_tokens_and_can_from_then_on(temperature: float, ignore_eos: bool) -> None:
    logits = torch.tensor([[0.0, 60.0, 0.0, 50.0, 1.0]])  # end-of-sequence is 1
    params: dict[str, Any] = {
        "temperature": temperature,
        "min_tokens": 4,
        "stop_token_ids": [3],
        "ignore_eos": ignore_eos,
    }

    assert sample(logits, [row(output_tokens=3, **params)]).item() not in (EOS, 3)
    assert sample(logits, [row(output_tokens=4, **params)]).item() == EOS


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_the_rules_leave_no_token_the_sequence_ends(temperature: float) -> None:
    nothing = row(temperature=temperature, allowed_token_ids=[3], bad_words_token_ids=[[3]])
    something = row(temperature=temperature, allowed_token_ids=[3])

    tokens, leads = sample_with_leads(torch.zeros(2, 9), [nothing, something])

    assert sample(torch.zeros(2, 9), [nothing, something]).tolist() == tokens.tolist() == [EOS, 3]
    assert leads.tolist() == [0, math.inf]


def test_a_sequence_draws_by_its_seed_its_output_index_and_the_position_alone() -> None:
    logits = torch.zeros(1, 4096)
    draws = {
        (seed, index, position): sample(logits, [row(seed=seed, output_index=index, position=position)]).item()
        for seed in (0, -1, 2**63 - 1)
        for index in (0, 1)
        for position in (7, 8)
    }

    assert len(set(draws.values())) == len(draws)
    assert sample(logits, [row(seed=-1, output_index=1, position=8, output_tokens=0)]).item() == draws[-1, 1, 8]


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty(0, 4096), []).tolist() == []
